-- Put before every script. KEYS[1] is the common beginning of all keys, hash tag included: whatever a
-- script touches is in that one slot. Numbers come and go as text, as Lua would round them when it
-- writes them. Every script answers a list that begins with what came of it.
local base = KEYS[1]
local function key(name)
  return base .. name
end

-- A session's record: "REVISION SANDBOX OWNER\n" and the codec's JSON. Nothing if it is damaged.
local function head_of(record)
  return string.match(record, '^(%d+) (%S+) (%S+)\n')
end

local function set_due(id, due)
  redis.call('ZREM', key('leased'), id)
  redis.call('ZREM', key('leased-due'), id)
  if due == '' then
    redis.call('ZREM', key('due'), id)
  else
    redis.call('ZADD', key('due'), due, id)
  end
end

local function unbind(id, sandbox)
  if sandbox ~= '-' and redis.call('HGET', key('bound'), sandbox) == id then
    redis.call('HDEL', key('bound'), sandbox)
  end
end

-- The first write is one that a full server refuses, before anything was changed.
local function add_session(id, record, created, due, active, sandbox, owner)
  redis.call('SET', key('s:' .. id), record)
  redis.call('ZADD', key('created'), created, id)
  redis.call('ZADD', key('owner:' .. owner), created, id)
  redis.call('ZADD', key('active'), 'GT', active, id)
  set_due(id, due)
  if sandbox ~= '-' then
    redis.call('HSET', key('bound'), sandbox, id)
  end
end

-- Which bound a further session of that owner would break; '' is no bound.
local function full(owner, total_max, owner_max)
  if total_max ~= '' and redis.call('ZCARD', key('created')) >= tonumber(total_max) then
    return 'total'
  end
  if owner_max ~= '' and redis.call('ZCARD', key('owner:' .. owner)) >= tonumber(owner_max) then
    return 'owner'
  end
  return nil
end

-- What keeps a new session from having a client's key; nothing if it may, or asks for none ('').
-- A reservation's record: "EXPIRES\n" and the codec's JSON. Expiry by the server only tidies up.
local function key_taken(name, now)
  local known = name ~= '' and redis.call('GET', key('key:' .. name))
  if not known then
    return nil
  end
  local expires, record = string.match(known, '^(%-?%d+)\n(.*)$')
  if not expires then
    return {'damaged-key'}
  end
  return tonumber(expires) > tonumber(now) and {'taken', record} or nil
end

-- The answer that keeps a new session from being made; nothing if it may be.
local function refused(id, name, created, owner, total_max, owner_max)
  local taken = key_taken(name, created)
  if taken then
    return taken
  end
  if redis.call('EXISTS', key('s:' .. id)) == 1 then
    return {'exists'}
  end
  local bound = full(owner, total_max, owner_max)
  return bound and {'full', bound} or nil
end

local function take_key(name, expires, kept_ms, record)
  if name ~= '' then
    redis.call('SET', key('key:' .. name), expires .. '\n' .. record, 'PX', kept_ms)
  end
end

-- A full server refuses a script's first write if it could take memory, and lets the later ones pass.
-- Sessions that exist must go on changing and ending then: begin with a write that takes none.
local function even_when_full()
  redis.call('DEL', key('nothing'))
end
