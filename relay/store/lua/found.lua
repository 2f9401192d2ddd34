-- Note what a look found; only the process that looks may.
-- KEYS looker, seen, open.
-- ARGV token, live_ms, mark or '', overlap_us, n_seen, n_opened, {run_id, created_us}.., opened run_id.., closed run_id..
-- Answers 1, or 0 if another process looks now. The mark (kept among the seen, under no name) only rises.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local seen, opened = tonumber(ARGV[5]), tonumber(ARGV[6])
local at = 7
for i = 1, seen do
  redis.call('ZADD', KEYS[2], ARGV[at + 1], ARGV[at])
  at = at + 2
end
for i = at, at + opened - 1 do redis.call('SADD', KEYS[3], ARGV[i]) end
for i = at + opened, #ARGV do redis.call('SREM', KEYS[3], ARGV[i]) end
if ARGV[3] ~= '' then redis.call('ZADD', KEYS[2], 'GT', ARGV[3], '') end
local mark = redis.call('ZSCORE', KEYS[2], '')
if mark then redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('(%.0f', mark - ARGV[4])) end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return 1
