-- take: take messages of a list in hand, in their order, from its right end.
--
-- KEYS[1]  L                    LIST  the messages
-- KEYS[2]  wakeq:{L}:taken:T    HASH  what the caller has in hand, by number
-- KEYS[3]  wakeq:{L}:taking:T   LIST  what it got by waiting; the oldest at the right end
-- KEYS[4]  wakeq:{L}:takers     ZSET  who takes messages
-- KEYS[5]  wakeq:{L}:suspects   HASH  messages that were in hand when their taker died
-- ARGV[1]  taker  the caller
-- ARGV[2]  first  the number of the first message, the next ones have the next ones
-- ARGV[3]  most   how many at most, 1..2000
-- ARGV[4]  bytes  take no more once there are so many
--
-- Returns for each message: its text; how often it was in hand when a taker died, and how often of
-- these alone, as `TIMES ALONE`, '' if never. An error, GONE, if the caller was taken for dead.
--
-- Atomic because a message must be in the list or in hand, and what was taken for dead has nothing
-- in hand.
if not redis.call('ZSCORE', KEYS[4], ARGV[1]) then
  return redis.error_reply('GONE the taker was taken for dead')
end
redis.call('HLEN', KEYS[2]) -- an error here, if a key is something else, changes nothing
redis.call('LLEN', KEYS[3])
local call = redis.call
local most, bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
local number, size = tonumber(ARGV[2]), 0
local result, pairs_of, bodies = {}, {}, 0
for _, key in ipairs({KEYS[3], KEYS[1]}) do
  while bodies < most and size < bytes do
    local body = call('RPOP', key)
    if not body then
      break
    end
    bodies = bodies + 1
    size = size + #body
    result[2 * bodies - 1] = body
    pairs_of[#pairs_of + 1] = string.format('%d', number)
    pairs_of[#pairs_of + 1] = body
    number = number + 1
  end
end
if bodies == 0 then
  return result
end
for i = 1, #pairs_of, 2000 do
  call('HSET', KEYS[2], unpack(pairs_of, i, math.min(i + 1999, #pairs_of)))
end
local suspected = call('EXISTS', KEYS[5]) == 1
for i = 1, bodies do
  result[2 * i] = suspected and call('HGET', KEYS[5], redis.sha1hex(result[2 * i - 1])) or ''
end
return result
