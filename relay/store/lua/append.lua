-- Make events durable. Lua does not roll back, so everything is checked before the first write.
-- KEYS log, run, bell.  ARGV owner, fence, prev, live_ms, cap, n_fields, {field, value}.., {seq, type, json}..
-- Answers 'OK', 'FENCED' (another owner writes now) or 'LOST' (the log's end is not `prev`, the run's state is gone, or more
-- was seen of it than there is).
-- A log beyond `cap` loses its head; 0: this time nobody looks. What can be fetched from nobody again (own seq, so without
-- holes) must be folded first.
-- Each call of Redis costs a microsecond here, and this is done for every event: so there are no more than it takes.
local function may_trim(run, at, cap)
  if redis.call('HEXISTS', run, 'ingest_cursor') == 0 then return true end
  return tonumber(redis.call('HGET', run, 'fold_seq') or 0) >= tonumber(at) - cap
end
local held = redis.call('HMGET', KEYS[2], 'owner', 'fence', 'seen', 'generation')
if not held[1] then return 'LOST' end
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then return 'FENCED' end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local last_id = last[1] and last[1][1] or '0-0'
if last_id ~= ARGV[3] .. '-0' then return 'LOST' end
local first = 7 + 2 * ARGV[6]
local generation = held[4]
for i = 7, first - 1, 2 do
  if ARGV[i] == 'generation' then generation = ARGV[i + 1] end
end
if short(held[3], generation, ARGV[3]) then return 'LOST' end
local at = ARGV[3]
for i = first, #ARGV, 3 do
  local seq = ARGV[i]
  if not less(at, seq) then return redis.error_reply('ERR append: seqs must rise: ' .. seq .. ' after ' .. at) end
  at = seq
end

for i = first, #ARGV, 3 do
  redis.call('XADD', KEYS[1], ARGV[i] .. '-0', 'type', ARGV[i + 1], 'event', ARGV[i + 2])
end
redis.call('HSET', KEYS[2], 'last_seq', at, unpack(ARGV, 7, math.min(first - 1, 106)))
for i = 107, first - 1, 100 do redis.call('HSET', KEYS[2], unpack(ARGV, i, math.min(first - 1, i + 99))) end
local cap = tonumber(ARGV[5])
if cap > 0 and redis.call('XLEN', KEYS[1]) > cap and may_trim(KEYS[2], at, cap)
  and redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', cap) > 0 then
  redis.call('HSET', KEYS[2], 'floor', before(seq_of(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1))))
end
-- From here on a second's renewal keeps it alive, as it does the run's state, which has its time since the claim.
if not last[1] then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
redis.call('SPUBLISH', KEYS[3], at)
return 'OK'
