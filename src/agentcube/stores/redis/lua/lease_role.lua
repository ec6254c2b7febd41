-- A role's record: "UNTIL OWNER".
local role, owner, now, until_ = unpack(ARGV)
local known_until, holder = string.match(redis.call('GET', key('role:' .. role)) or '', '^(%-?%d+) (.*)$')
if holder and holder ~= owner and tonumber(known_until) > tonumber(now) then
  return {'held'}
end
even_when_full()
redis.call('SET', key('role:' .. role), until_ .. ' ' .. owner)
return {'ok'}
