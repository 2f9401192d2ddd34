-- Give a run up, so that the next one who wants it need not wait for the lease to end.
-- Those who follow the run hear of it at once.
-- KEYS leases, run, bell.  ARGV member, owner, fence.
local held = redis.call('HMGET', KEYS[2], 'owner', 'fence')
if held[1] == ARGV[2] and held[2] == ARGV[3] then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], 'owner')
  redis.call('SPUBLISH', KEYS[3], 'released')
  return 1
end
return 0
