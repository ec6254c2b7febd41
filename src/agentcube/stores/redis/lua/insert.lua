local id, record, created, due, active, sandbox, owner, total_max, owner_max = unpack(ARGV)
local name, expires, kept_ms, reservation = unpack(ARGV, 10)
local refusal = refused(id, name, created, owner, total_max, owner_max)
if refusal then
  return refusal
end
add_session(id, record, created, due, active, sandbox, owner)
take_key(name, expires, kept_ms, reservation)
return {'ok'}
