local now, until_, limit = unpack(ARGV)
-- Leases that have ended; so many at a time that nobody else waits long for this.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('leased'), '-inf', now, 'LIMIT', 0, 1000)) do
  local due = redis.call('ZSCORE', key('leased-due'), id)
  set_due(id, due or '')
end
local rows = redis.call('ZRANGEBYSCORE', key('due'), '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
local answer = {'ok'}
for i = 1, #rows, 2 do
  local id = rows[i]
  local record = redis.call('GET', key('s:' .. id))
  redis.call('ZREM', key('due'), id)
  if record then
    redis.call('ZADD', key('leased'), until_, id)
    redis.call('ZADD', key('leased-due'), rows[i + 1], id)
    answer[#answer + 1] = id
    answer[#answer + 1] = record
    answer[#answer + 1] = redis.call('ZSCORE', key('active'), id)
  end
end
return answer
