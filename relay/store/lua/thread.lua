-- Note in which thread a run is. The hash may be new: then it needs an end too, and nothing that is there loses time.
-- KEYS run.  ARGV thread_id, live_ms.
redis.call('HSET', KEYS[1], 'thread_id', ARGV[1])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
