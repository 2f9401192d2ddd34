-- Keep a run's fold beside its log: what a late reader needs of all events up to `seq`. Only its owner may.
-- KEYS run.  ARGV owner, fence, generation, seq, fold.
-- Answers 'OK' or 'FENCED' (another owner writes now, the run began anew, or a later fold is there).
local held = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'generation', 'fold_seq')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] or (held[3] or '1') ~= ARGV[3] then return 'FENCED' end
if held[4] and less(ARGV[4], held[4]) then return 'FENCED' end
redis.call('HSET', KEYS[1], 'fold', ARGV[5], 'fold_seq', ARGV[4])
return 'OK'
