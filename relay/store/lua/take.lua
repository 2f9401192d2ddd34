-- Take the right to fill `old`: one filler per run in the whole fleet. It goes on where the last one stopped; who needs
-- what lies before its start makes it start again, from the very beginning (so that this happens only once).
-- KEYS fill, old, log, run.  ARGV token, lease_ms, old_ms, cursor.
-- Answers {'OK', from, upto, floor}, {'FULL'} (there is nothing to fetch), {'HELD', ms} or {'LOST'} (the run's state is).
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('HEXISTS', KEYS[4], 'fence') == 0 then return {'LOST'} end
local held = redis.call('HMGET', KEYS[1], 'token', 'until')
if held[1] and held[1] ~= ARGV[1] and tonumber(held[2]) > now_ms then
  local left_ms = tonumber(held[2]) - now_ms
  if left_ms > 4 * ARGV[2] then  -- the clock was set back: see scan
    left_ms = tonumber(ARGV[2])
    redis.call('HSET', KEYS[1], 'until', string.format('%.0f', now_ms + left_ms))
  end
  return {'HELD', left_ms}
end
local floor = floor_of(KEYS[4], KEYS[3])
local gone = redis.call('HGET', KEYS[4], 'gone') or '0'
local cursor = less(ARGV[4], gone) and gone or ARGV[4]  -- nobody needs to ask for what nobody has
local from, upto = covered(KEYS[1], KEYS[2])
local afresh = not from or less(cursor, from)
if afresh then
  from = from and gone or cursor
  upto = from
end
if not less(upto, floor) then return {'FULL'} end

if afresh then
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'from', from, 'upto', upto, 'last', '0')
end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'until', string.format('%.0f', now_ms + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {'OK', from, upto, floor}
