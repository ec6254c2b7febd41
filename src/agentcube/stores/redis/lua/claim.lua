-- The record comes in two pieces, before and after the sandbox's JSON, which the entry has.
local id, before, after, created, due, active, owner, pool, total_max, owner_max = unpack(ARGV)
local name, expires, kept_ms, reservation = unpack(ARGV, 11)
local refusal = refused(id, name, created, owner, total_max, owner_max)
if refusal then
  return refusal
end
local ready = key('ready:' .. pool)
local sandbox, json
repeat
  sandbox = redis.call('ZRANGE', ready, 0, 0)[1]
  if not sandbox then
    return {'none'}
  end
  json = string.match(redis.call('HGET', key('warm'), sandbox) or '', '^%S+\n([^\n]+)\n')
  if not json then -- damaged: listing the pool says so, and claims go on with the next one
    redis.call('ZREM', ready, sandbox)
  end
until json
add_session(id, '1 ' .. sandbox .. ' ' .. owner .. '\n' .. before .. json .. after, created, due, active, sandbox, owner)
redis.call('ZREM', ready, sandbox)
redis.call('HDEL', key('warm'), sandbox)
take_key(name, expires, kept_ms, reservation)
return {'ok', json}
