-- Write what the upstream said of a trimmed head, and keep the right to do so. Checks everything before its first write:
-- a filler that was frozen meanwhile writes nothing.
-- KEYS fill, old, log, run, bell.
-- ARGV token, lease_ms, old_ms, prev, upto, gone, starts, {seq, type, json}..
-- `prev`: up to where `old` is filled as its filler knows it; empty: only keep (or, with no lease_ms, give up) the right.
-- `upto`: there is nothing more up to here. `gone`: events up to here are lost upstream too. `starts`: the run's very
-- first seq; nothing was ever before it.
-- Answers {'OK', upto, floor}, {'FENCED'} (another one fills now) or {'LOST'} (`old` or the run's state is not as it was).
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'FENCED'} end
local until_ms = string.format('%.0f', now_ms + ARGV[2])
if ARGV[4] == '' then
  redis.call('HSET', KEYS[1], 'until', until_ms)
  return {'OK', '0', '0'}
end
local state = redis.call('HMGET', KEYS[4], 'fence', 'gone')
local from, upto = covered(KEYS[1], KEYS[2])
if not state[1] or not from or upto ~= ARGV[4] then return {'LOST'} end
local last = upto
for i = 8, #ARGV, 3 do
  if not less(last, ARGV[i]) then return redis.error_reply('ERR fill: seqs must rise: ' .. ARGV[i] .. ' after ' .. last) end
  last = ARGV[i]
end
local floor = floor_of(KEYS[4], KEYS[3])

for i = 8, #ARGV, 3 do
  redis.call('XADD', KEYS[2], ARGV[i] .. '-0', 'type', ARGV[i + 1], 'event', ARGV[i + 2])
end
if #ARGV >= 8 then redis.call('HSET', KEYS[1], 'last', last) end
if less(last, ARGV[5]) then last = ARGV[5] end
redis.call('HSET', KEYS[1], 'upto', last, 'until', until_ms)
-- What the log still holds is not gone, whatever became of it upstream.
local gone = less(floor, ARGV[6]) and floor or ARGV[6]
if less(state[2] or '0', gone) then redis.call('HSET', KEYS[4], 'gone', gone) end
if ARGV[7] ~= '0' and seq_of(redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', 1)) == ARGV[7] then
  -- The log holds all of a run that starts above 1: nobody needs to ask for its head again.
  redis.call('HSET', KEYS[4], 'floor', '0', 'contiguous', '0')
  floor = '0'
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('SPUBLISH', KEYS[5], 'old')
return {'OK', last, floor}
