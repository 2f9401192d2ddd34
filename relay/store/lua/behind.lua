-- What lies behind a cursor, wherever it is: in the log, or below its floor in `old`. One look, so that no trim, no loss
-- and no refill can come in between and make a hole look like the upstream's own.
-- KEYS log, run, old, fill.  ARGV cursor, most, old_ms.
-- Answers {'log' or 'old', floor, entries} (none: nothing there yet), {'gone', floor, last seq that can no longer be had}
-- or {'missing', floor}: the upstream has to be asked.
local cursor = ARGV[1]
local floor = floor_of(KEYS[2], KEYS[1])
local function entries(key, upto) return redis.call('XRANGE', key, '(' .. cursor .. '-0', upto, 'COUNT', ARGV[2]) end
if not less(cursor, floor) then return {'log', floor, entries(KEYS[1], '+')} end
local gone = redis.call('HGET', KEYS[2], 'gone') or '0'
local from, upto = covered(KEYS[4], KEYS[3])
local held = from and not less(cursor, from)
if held then
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
  redis.call('PEXPIRE', KEYS[4], ARGV[3])
  -- What the upstream has lost since it was fetched is still here; the hole behind it is told when it is reached.
  local found = entries(KEYS[3], less(cursor, gone) and gone .. '-0' or '+')
  if found[1] then return {'old', floor, found} end
end
if less(cursor, gone) then return {'gone', floor, gone} end
-- Nothing up to the log's first event: the upstream's own hole.
if held and not less(upto, floor) then return {'log', floor, entries(KEYS[1], '+')} end
return {'missing', floor}
