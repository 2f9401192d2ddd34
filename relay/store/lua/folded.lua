-- What a late reader needs of a run: its stored fold, if that is newer than what the asker has, and the rows behind it.
-- KEYS run, log.  ARGV known (seq), most rows, most bytes (about).
-- Answers {generation, floor, fold or '', rows, 1 if there may be more}. Rows begin behind the fold, or behind `known` if
-- there is no newer one; none if the log no longer holds what comes next. A fold of an earlier generation is void.
local held = redis.call('HMGET', KEYS[1], 'fold_seq', 'generation')
local from, fold = ARGV[1], ''
local generation = held[2] or '1'
if held[1] and less(from, held[1]) and not less(held[1], generation) then
  from, fold = held[1], redis.call('HGET', KEYS[1], 'fold') or ''
end
local floor = floor_of(KEYS[1], KEYS[2])
local rows, size, more = {}, 0, not less(from, floor)
local at = '(' .. from .. '-0'
-- A few at a time: one row may be megabytes.
while more and #rows < tonumber(ARGV[2]) and size < tonumber(ARGV[3]) do
  local part = redis.call('XRANGE', KEYS[2], at, '+', 'COUNT', 16)
  for _, row in ipairs(part) do
    rows[#rows + 1] = row
    size = size + #row[2][4]
  end
  more = #part == 16
  if more then at = '(' .. part[16][1] end
end
return {generation, floor, fold, rows, more and 1 or 0}
