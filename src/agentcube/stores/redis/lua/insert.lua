local id, record, created, due, active, sandbox, owner, total_max, owner_max = unpack(ARGV)
local name, expires, kept_ms, reservation = unpack(ARGV, 10)
local taken = key_taken(name, created)
if taken then
  return taken
end
if redis.call('EXISTS', key('s:' .. id)) == 1 then
  return {'exists'}
end
local bound = full(owner, total_max, owner_max)
if bound then
  return {'full', bound}
end
add_session(id, record, created, due, active, sandbox, owner)
take_key(name, expires, kept_ms, reservation)
return {'ok'}
