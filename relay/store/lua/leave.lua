-- Give the right to look back, so that another process need not wait for its end.
-- KEYS looker.  ARGV token.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
