-- Put before every script that counts. Seqs are compared and counted as text: a Lua number is exact only to 2^53.
local function less(a, b) return #a < #b or (#a == #b and a < b) end
local function before(seq)
  local rest, digit, zeros = string.match(seq, '^(%d-)([1-9])(0*)$')
  if not digit then return '0' end
  return string.match(rest .. (digit - 1) .. string.rep('9', #zeros), '^0*(%d+)$')
end
local function seq_of(entries) return entries[1] and string.match(entries[1][1], '^(%d+)-') or '0' end
-- The log does not hold what lies up to here. A run whose seqs have no holes starts at 1, so its log says so itself,
-- whatever the hash says or has lost; only where holes were confirmed is a late start no sign of anything.
local function floor_of(run, log)
  local known = redis.call('HMGET', run, 'floor', 'contiguous')
  local floor = known[1] or '0'
  if known[2] == '0' then return floor end
  local first = before(seq_of(redis.call('XRANGE', log, '-', '+', 'COUNT', 1)))
  return less(floor, first) and first or floor
end
-- What `old` holds: all the upstream has after the first answer, up to the second. Nil if it holds nothing to be relied
-- upon (never filled, or the stream and what is noted of it no longer agree).
local function covered(fill, old)
  local known = redis.call('HMGET', fill, 'from', 'upto', 'last')
  if not known[1] or seq_of(redis.call('XREVRANGE', old, '+', '-', 'COUNT', 1)) ~= known[3] then return nil end
  return known[1], known[2]
end
-- All that is known of a run, as a flat list; its fold may be large and is asked for by name.
local function fields_of(run)
  local flat = redis.call('HGETALL', run)
  for i = 1, #flat, 2 do
    if flat[i] == 'fold' then flat[i + 1] = '' end
  end
  return flat
end
