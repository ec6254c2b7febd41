local id, revision = unpack(ARGV)
local known = redis.call('GET', key('s:' .. id))
if not known then
  return {'absent'}
end
local known_revision, sandbox, owner = head_of(known)
if not known_revision then
  return {'damaged'}
end
if known_revision ~= revision then
  return {'stale', known_revision}
end
redis.call('DEL', key('s:' .. id))
redis.call('ZREM', key('created'), id)
redis.call('ZREM', key('owner:' .. owner), id)
redis.call('ZREM', key('active'), id)
set_due(id, '')
unbind(id, sandbox)
return {'ok'}
