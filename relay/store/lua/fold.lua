-- Keep a run's fold beside its log: what a late reader needs of all events up to `seq`. Only its owner may.
-- KEYS run, log.  ARGV owner, fence, generation, seq, fold.
-- Answers 'OK' or 'FENCED' (another owner writes now, the run began anew, a later fold is there, or the log does not reach
-- so far: this server may have lost what its owner remembers).
local held = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'generation', 'fold_seq')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] or (held[3] or '1') ~= ARGV[3] then return 'FENCED' end
if held[4] and less(ARGV[4], held[4]) then return 'FENCED' end
if less(seq_of(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)), ARGV[4]) then return 'FENCED' end
redis.call('HSET', KEYS[1], 'fold', ARGV[5], 'fold_seq', ARGV[4])
return 'OK'
