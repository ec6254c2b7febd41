local name = unpack(ARGV)
if redis.call('HDEL', key('templates'), name) == 0 then
  return {'absent'}
end
return {'ok'}
