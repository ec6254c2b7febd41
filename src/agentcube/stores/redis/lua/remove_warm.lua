local id = unpack(ARGV)
local known = redis.call('HGET', key('warm'), id)
if not known then
  return {'absent'}
end
redis.call('HDEL', key('warm'), id)
redis.call('ZREM', key('ready:' .. string.match(known, '^[^\n]*')), id)
return {'ok'}
