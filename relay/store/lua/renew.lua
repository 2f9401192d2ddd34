-- Keep the leases of many runs of one partition. Revives an expired lease that nobody else has claimed.
-- KEYS leases, {run, log}..  ARGV lease_ms, live_ms, {member, owner, fence, last_seq}..
-- Answers per run: 'OK', 'FENCED', or 'LOST' (its state is gone, or its log is shorter than its owner wrote it).
local time = redis.call('TIME')
local expiry = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
local answers = {}
for i = 1, (#KEYS - 1) / 2 do
  local run, log, at = KEYS[2 * i], KEYS[2 * i + 1], 4 * i - 1
  local held = redis.call('HMGET', run, 'owner', 'fence')
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
  local last_id = last[1] and last[1][1] or '0-0'
  if not held[1] then
    answers[i] = 'LOST'
  elseif held[1] ~= ARGV[at + 1] or held[2] ~= ARGV[at + 2] then
    answers[i] = 'FENCED'
  elseif last_id == '0-0' and ARGV[at + 3] ~= '0' then
    answers[i] = 'LOST'
  else
    redis.call('ZADD', KEYS[1], expiry, ARGV[at])
    redis.call('PEXPIRE', run, ARGV[2])
    redis.call('PEXPIRE', log, ARGV[2])
    answers[i] = 'OK'
  end
end
if #answers > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return answers
