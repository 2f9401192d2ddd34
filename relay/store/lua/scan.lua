-- Which wanted runs of one partition has nobody? Wants that are over are forgotten on the way.
-- KEYS wants, leases.  ARGV most.
-- Answers {ms until the next lease of a wanted run ends (-1: none), orphan..}
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
local soonest = -1
local answer = {-1}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local expiry = tonumber(redis.call('ZSCORE', KEYS[2], member) or 0)
  if expiry > now_ms then
    if soonest < 0 or expiry - now_ms < soonest then soonest = expiry - now_ms end
  elseif #answer <= tonumber(ARGV[1]) then
    answer[#answer + 1] = member
  end
end
answer[1] = soonest
return answer
