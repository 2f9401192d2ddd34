-- What a late reader needs of a run: its stored fold, if that is newer than what the asker has, and the rows behind it.
-- KEYS run, log.  ARGV known (seq), most.
-- Answers {generation, floor, fold or '', rows}. Rows begin behind the fold, or behind `known` if there is no newer one;
-- none if the log no longer holds what comes next. A fold of an earlier generation is void.
local held = redis.call('HMGET', KEYS[1], 'fold_seq', 'generation')
local from, fold = ARGV[1], ''
local generation = held[2] or '1'
if held[1] and less(from, held[1]) and not less(held[1], generation) then
  from, fold = held[1], redis.call('HGET', KEYS[1], 'fold') or ''
end
local floor = floor_of(KEYS[1], KEYS[2])
if less(from, floor) then return {generation, floor, fold, {}} end
return {generation, floor, fold, redis.call('XRANGE', KEYS[2], '(' .. from .. '-0', '+', 'COUNT', ARGV[2])}
