-- What a process that follows an own-seq run knows of it. A log that ends before `seq` has lost rows, and its owner hears of
-- it; and where nothing else is left, it can at least be asked for in its thread.
-- KEYS run, log.  ARGV seq, born, thread_id or '', live_ms.
-- Answers 1 if the seq was news.
local last_seq = seq_of(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1))
local news = note_seen(KEYS[1], last_seq, ARGV[1], ARGV[2])
if ARGV[3] ~= '' then redis.call('HSETNX', KEYS[1], 'thread_id', ARGV[3]) end
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return news and 1 or 0
