-- Which wanted runs of one partition has nobody? Wants that are over are forgotten on the way.
-- KEYS wants, leases.  ARGV most, want_ms, lease_ms.
-- Answers {now in ms, ms until the next lease of a wanted run ends (-1: none), orphan..}
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
-- What ends later than anything can was written before the clock was set back: it gets the time that one given now would
-- have, so that an owner who lives can renew. Four times, because processes of one fleet may differ in these lengths.
for i, key in ipairs(KEYS) do
  local longest_ms = tonumber(ARGV[i + 1])
  local late = redis.call('ZRANGE', key, now_ms + 4 * longest_ms, '+inf', 'BYSCORE', 'LIMIT', 0, 1000)
  for _, member in ipairs(late) do redis.call('ZADD', key, now_ms + longest_ms, member) end
end
local soonest = -1
local answer = {now_ms, -1}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local expiry = tonumber(redis.call('ZSCORE', KEYS[2], member) or 0)
  if expiry > now_ms then
    if soonest < 0 or expiry - now_ms < soonest then soonest = expiry - now_ms end
  elseif #answer <= tonumber(ARGV[1]) + 1 then
    answer[#answer + 1] = member
  end
end
answer[2] = soonest
return answer
