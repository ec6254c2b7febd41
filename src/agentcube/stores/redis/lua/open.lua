-- What the store is; made when there is none.
local schema, id = unpack(ARGV)
if redis.call('EXISTS', key('meta')) == 0 then
  redis.call('HSET', key('meta'), 'schema', schema, 'id', id)
end
return {'ok', unpack(redis.call('HGETALL', key('meta')))}
