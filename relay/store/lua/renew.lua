-- Keep the leases of many runs of one partition. Revives an expired lease that nobody else has claimed.
-- `last_seq` is what its owner knows to be durable: a log that ends before it, or before what was seen of it
-- elsewhere, has lost something.
-- KEYS leases, wants, {run, log}..  ARGV lease_ms, live_ms, {member, owner, fence, last_seq}..
-- Answers per run: 'OK', 'UNWANTED' (nobody wants it any more), 'FENCED', or 'LOST' (its state or its log is gone).
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local expiry = now_ms + ARGV[1]
local answers = {}
for i = 1, (#KEYS - 2) / 2 do
  local run, log, at = KEYS[2 * i + 1], KEYS[2 * i + 2], 4 * i - 1
  local held = redis.call('HMGET', run, 'owner', 'fence', 'seen', 'generation')
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
  local last_seq = last[1] and string.match(last[1][1], '^(%d+)-') or '0'
  if not held[1] then
    answers[i] = 'LOST'
  elseif held[1] ~= ARGV[at + 1] or held[2] ~= ARGV[at + 2] then
    answers[i] = 'FENCED'
  elseif less(last_seq, ARGV[at + 3]) or short(held[3], held[4], last_seq) then
    answers[i] = 'LOST'
  else
    redis.call('ZADD', KEYS[1], expiry, ARGV[at])
    redis.call('PEXPIRE', run, ARGV[2])
    redis.call('PEXPIRE', log, ARGV[2])
    local wanted = redis.call('ZSCORE', KEYS[2], ARGV[at])
    answers[i] = wanted and tonumber(wanted) > now_ms and 'OK' or 'UNWANTED'
  end
end
if #answers > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return answers
