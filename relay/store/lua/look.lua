-- Take the right to look for the runs of one upstream, or keep it; what was found so far lives on with it.
-- KEYS looker, seen, open.  ARGV token, lease_ms, live_ms.
-- Answers 1, or 0 if another process looks.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return 1
