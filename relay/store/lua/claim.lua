-- Take the right to write a run: a new fence, higher than every one before, for an owner's random token.
-- KEYS leases, run, log, wants.  ARGV member, owner, lease_ms, live_ms, reopen, want_ms, known, seen, born, life.
-- `known` is the highest fence its owner was ever given. `seen`, for runs whose events we number: the highest seq that was
-- shown or written where it runs (empty for all others), and in which log (`born`). It is noted even if another owner is at
-- it: that one must know.
-- `life`: which life of the machine this is, where the server cannot lose rows before the machine does; empty: not known.
-- Whoever claims wants the run: that is noted too, also if another owner is at it.
-- Answers {1, fence, last_seq, run hash as a flat list} or {0, ms until the present lease ends}. The fence is empty, and
-- nothing was written, for a sealed run that is to stay so.
-- Which history this server's data is a part of: it changes with every promotion and every start.
local function history()
  local told = redis.pcall('INFO', 'replication')
  return type(told) == 'string' and string.match(told, 'master_replid:(%w+)') or '?'
end
-- After an XDEL at its end a stream refuses all ids up to the deleted one, which are those its log needs next. XSETID puts
-- it back after its last entry, but not before what was deleted: then the same entries make a new stream.
local function goes_on(log, last)
  if redis.pcall('XSETID', log, last).err then
    local rows = redis.call('XRANGE', log, '-', '+')
    redis.call('DEL', log)
    for _, row in ipairs(rows) do redis.call('XADD', log, row[1], unpack(row[2])) end
  end
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
-- An operator's XDEL at the end (or of everything) leaves a stream that refuses the seqs its log needs next.
local stream = redis.call('EXISTS', KEYS[3]) == 1 and redis.call('XLEN', KEYS[3])
if stream == 0 then redis.call('DEL', KEYS[3]) end
local held = redis.call('HMGET', KEYS[2], 'owner', 'fence', 'sealed')
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
local last_seq = last[1] and string.match(last[1][1], '^(%d+)-') or '0'
local own = ARGV[8] ~= ''
if own and note_seen(KEYS[2], last_seq, ARGV[8], ARGV[9]) and redis.call('PTTL', KEYS[2]) < 0 then
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
local known = redis.call('HMGET', KEYS[2], 'seen', 'generation', 'life')
local lossy = own and short(known[1], known[2], last_seq)
if held[3] == '1' and last_seq ~= '0' and ARGV[5] ~= '1' and not lossy then
  redis.call('ZREM', KEYS[4], ARGV[1])
  return {1, '', last_seq, fields_of(KEYS[2])}
end
redis.call('ZADD', KEYS[4], 'GT', now_ms + ARGV[6], ARGV[1])
redis.call('PEXPIRE', KEYS[4], ARGV[4])
local expiry = redis.call('ZSCORE', KEYS[1], ARGV[1])
if expiry and held[1] and held[1] ~= ARGV[2] and tonumber(expiry) > now_ms then
  local left_ms = tonumber(expiry) - now_ms
  if left_ms > 4 * ARGV[3] then  -- the clock was set back: see scan
    left_ms = tonumber(ARGV[3])
    redis.call('ZADD', KEYS[1], now_ms + left_ms, ARGV[1])
  end
  return {0, left_ms}
end
-- From the clock, so that a flush (no stored fence) or a lagging replica cannot hand out an old one again; and above all
-- that this owner had, so that not even a clock set back can give it the same one twice.
local fence = math.max((tonumber(held[2]) or 0) + 1, ARGV[7] + 1, time[1] * 1000000 + time[2])
local fence_text = string.format('%.0f', fence)
redis.call('HSET', KEYS[2], 'owner', ARGV[2], 'fence', fence_text)
if own then
  -- The last owner wrote to another server, or to this one before it started anew: what it wrote last may not be here.
  local life = ARGV[10] ~= '' and ARGV[10] or history()
  if known[3] and known[3] ~= life then redis.call('HSET', KEYS[2], 'doubt', '1') end
  redis.call('HSET', KEYS[2], 'life', life)
  redis.call('HSETNX', KEYS[2], 'born', fence_text)
  if lossy then redis.call('HDEL', KEYS[2], 'sealed') end
end
-- What the log held when an earlier owner looked says nothing of now.
redis.call('HDEL', KEYS[2], 'primed')
if last[1] then goes_on(KEYS[3], last[1][1]) end
redis.call('ZADD', KEYS[1], now_ms + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
-- Leases that ended an hour ago belong to nobody: an owner that died leaves its member behind.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms - 3600000)
local floor = floor_of(KEYS[2], KEYS[3])
if floor ~= '0' then redis.call('HSET', KEYS[2], 'floor', floor) end  -- known again also if the hash was lost
if last_seq == '0' then
  -- Nothing is left of the log (or nothing was ever in it): what was said of its head, its start and its end is void.
  redis.call('HDEL', KEYS[2], 'sealed', 'primed', 'floor', 'gone', 'contiguous', 'last_seq', 'status', 'fold', 'fold_seq')
end
return {1, fence_text, last_seq, fields_of(KEYS[2])}
