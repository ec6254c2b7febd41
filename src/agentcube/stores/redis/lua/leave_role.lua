local role, owner = unpack(ARGV)
if string.match(redis.call('GET', key('role:' .. role)) or '', '^%-?%d+ (.*)$') == owner then
  redis.call('DEL', key('role:' .. role))
end
return {'ok'}
