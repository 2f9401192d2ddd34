-- Put before every script that counts. Seqs are compared and counted as text: a Lua number is exact only to 2^53.
local function less(a, b) return #a < #b or (#a == #b and a < b) end
local function before(seq)
  local rest, digit, zeros = string.match(seq, '^(%d-)([1-9])(0*)$')
  if not digit then return '0' end
  return string.match(rest .. (digit - 1) .. string.rep('9', #zeros), '^0*(%d+)$')
end
local function after(seq)
  local rest, digit, nines = string.match(seq, '^(%d-)([0-8])(9*)$')
  if not digit then return '1' .. string.rep('0', #seq) end
  return rest .. (digit + 1) .. string.rep('0', #nines)
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
-- Somebody was shown events of an own-seq run that its log does not hold, and of this very generation: rows were lost, and
-- only a new generation above them may be written.
local function short(seen, generation, last_seq)
  return seen and less(last_seq, seen) and not less(seen, generation or '1')
end
-- `born` is the log in which it was seen, if that is known: another one knows nothing of it, however long it is by now
-- (later generations are numbered by the clock, so what is seen of them is seen of no other log).
local function note_seen(run, last_seq, seq, born)
  local known = redis.call('HMGET', run, 'seen', 'generation', 'born')
  local other = born ~= '' and known[3] and known[3] ~= born and (known[2] or '1') == '1'
  if other and seq ~= '0' and not less(last_seq, seq) then seq = after(last_seq) end
  if not short(seq, known[2], last_seq) or not less(known[1] or '0', seq) then return false end
  redis.call('HSET', run, 'seen', seq)
  return true
end
