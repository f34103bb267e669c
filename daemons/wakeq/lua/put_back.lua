-- put_back: put messages in hand that will not be handled back into their list, to be taken next.
--
-- KEYS[1]  L                   LIST  the messages
-- KEYS[2]  wakeq:{L}:taken:T   HASH  what the caller has in hand, by number
-- ARGV[1..]  their numbers, the highest first, 1..2000
--
-- Returns how many the caller had in hand until now.
--
-- Atomic because a message must be in the list or in hand.
redis.call('LLEN', KEYS[1]) -- an error here, if the key is something else, changes nothing
local count = 0
for i = 1, #ARGV do
  local body = redis.call('HGET', KEYS[2], ARGV[i])
  if body then
    redis.call('RPUSH', KEYS[1], body)
    redis.call('HDEL', KEYS[2], ARGV[i])
    count = count + 1
  end
end
return count
