-- As put_warm, for an entry that is still there.
local id, created, pool, record = unpack(ARGV)
local known = redis.call('HGET', key('warm'), id)
if not known then
  return {'absent'}
end
redis.call('HSET', key('warm'), id, record)
redis.call('ZREM', key('ready:' .. string.match(known, '^[^\n]*')), id)
if pool ~= '-' then
  redis.call('ZADD', key('ready:' .. pool), created, id)
end
return {'ok'}
