-- The run is over and nothing more is awaited: the only thing that makes "no more ever" true. Retention starts here.
-- KEYS log, run, bell, leases, wants.  ARGV owner, fence, prev, sealed_ms, status, member.
-- Answers as append does.
local held = redis.call('HMGET', KEYS[2], 'owner', 'fence', 'seen', 'generation')
if not held[1] then return 'LOST' end
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then return 'FENCED' end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local last_id = last[1] and last[1][1] or '0-0'
if last_id ~= ARGV[3] .. '-0' or short(held[3], held[4], ARGV[3]) then return 'LOST' end

redis.call('HSET', KEYS[2], 'sealed', '1', 'primed', '1', 'status', ARGV[5], 'last_seq', ARGV[3])
redis.call('HDEL', KEYS[2], 'owner')
redis.call('ZREM', KEYS[4], ARGV[6])
redis.call('ZREM', KEYS[5], ARGV[6])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('SPUBLISH', KEYS[3], 'sealed')
return 'OK'
