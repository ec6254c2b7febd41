local id, revision, record, due, active, sandbox = unpack(ARGV)
local known = redis.call('GET', key('s:' .. id))
if not known then
  return {'absent'}
end
local known_revision, known_sandbox = head_of(known)
if not known_revision then
  return {'damaged'}
end
if known_revision ~= revision then
  return {'stale', known_revision}
end
even_when_full()
redis.call('SET', key('s:' .. id), record)
redis.call('ZADD', key('active'), 'GT', active, id)
set_due(id, due)
if known_sandbox ~= sandbox then
  unbind(id, known_sandbox)
  if sandbox ~= '-' then
    redis.call('HSET', key('bound'), sandbox, id)
  end
end
return {'ok', redis.call('ZSCORE', key('active'), id)}
