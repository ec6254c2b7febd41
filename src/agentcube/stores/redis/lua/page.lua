-- Sessions of an index after a place in it: id, time, record and activity in turn.
local index, after_time, after_id, count = unpack(ARGV)
count = tonumber(count)

-- By bytes, as the server orders members; Lua's own < goes by the server's locale.
local function beyond(id, other)
  for i = 1, #id do
    local a, b = string.byte(id, i), string.byte(other, i)
    if not b or a > b then
      return true
    elseif a < b then
      return false
    end
  end
  return false
end

local found = {}
local offset = 0
while #found < count do
  local from = after_time == '' and '-inf' or after_time
  local rows = redis.call('ZRANGEBYSCORE', key(index), from, '+inf', 'WITHSCORES', 'LIMIT', offset, count)
  for i = 1, #rows, 2 do
    -- Of those made at the very moment of the place, the ids up to it are behind us.
    local later = after_time == '' or tonumber(rows[i + 1]) > tonumber(after_time)
    if #found < count and (later or beyond(rows[i], after_id)) then
      found[#found + 1] = {rows[i], rows[i + 1]}
    end
  end
  if #rows < 2 * count then
    break
  end
  offset = offset + count
end

local answer = {'ok'}
for _, row in ipairs(found) do
  local id, time = unpack(row)
  local record = redis.call('GET', key('s:' .. id))
  if not record then -- somebody took a damaged one out: its places go when they are met
    redis.call('ZREM', key(index), id)
    redis.call('ZREM', key('active'), id)
    set_due(id, '')
  end
  answer[#answer + 1] = id
  answer[#answer + 1] = time
  answer[#answer + 1] = record
  answer[#answer + 1] = redis.call('ZSCORE', key('active'), id)
end
return answer
