-- What is known of runs of one partition. Writes nothing.
-- KEYS wants, run..  ARGV member..
-- Answers per run: 1 (it was claimed) + 2 (it is sealed) + 4 (it is wanted).
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {}
for i = 1, #ARGV do
  local run = redis.call('HMGET', KEYS[i + 1], 'fence', 'sealed')
  local wanted = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[i]) or 0)
  answers[i] = (run[1] and 1 or 0) + (run[2] == '1' and 2 or 0) + (wanted > now_ms and 4 or 0)
end
return answers
