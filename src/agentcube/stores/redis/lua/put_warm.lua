-- An entry's record: "POOL\nSANDBOX-JSON\n" and the codec's JSON; POOL is - while it cannot be claimed.
local id, created, pool, record = unpack(ARGV)
if redis.call('HEXISTS', key('bound'), id) == 1 then
  return {'bound'}
end
local known = redis.call('HGET', key('warm'), id)
redis.call('HSET', key('warm'), id, record)
if known then
  redis.call('ZREM', key('ready:' .. string.match(known, '^[^\n]*')), id)
end
if pool ~= '-' then
  redis.call('ZADD', key('ready:' .. pool), created, id)
end
return {'ok'}
