local name, known_generation, generation, record = unpack(ARGV)
local current = redis.call('HGET', key('generations'), name) or '0'
if current ~= known_generation then
  return {'stale', current}
end
redis.call('HSET', key('templates'), name, record)
redis.call('HSET', key('generations'), name, generation)
return {'ok'}
