-- drop_errors: remove entries of an error list that were printed, the oldest first.
--
-- KEYS[1]  the error list  LIST  the oldest at the right end
-- ARGV[1..]  the hash of each of them (SHA-1), in their order, 1..1000
--
-- Returns how many were removed. What somebody else has removed meanwhile is passed over, and what
-- was not printed stays.
--
-- Atomic because several may print at once, and what one of them removes the other must not count.
local removed = 0
local last = redis.call('LINDEX', KEYS[1], -1)
for i = 1, #ARGV do
  if not last then
    break
  end
  if redis.sha1hex(last) == ARGV[i] then
    redis.call('RPOP', KEYS[1])
    removed = removed + 1
    last = redis.call('LINDEX', KEYS[1], -1)
  end
end
return removed
