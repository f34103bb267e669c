-- finish_taken: let go of messages of a list that were handled, or failed.
--
-- KEYS[1]  wakeq:{L}:taken:T   HASH  what the caller has in hand, by number
-- KEYS[2]  the error list      LIST  messages that failed, the newest at the left end
-- KEYS[3]  wakeq:{L}:stats:N   HASH  counters of the node
-- KEYS[4]  wakeq:{L}:suspects  HASH  messages that were in hand when their taker died
-- ARGV[1]  handled  how many were handled, 0..1000; their numbers follow
-- ARGV[2..]         then, for each that failed: its number, and what goes to the error list
--
-- Returns how many the caller had in hand until now; what it had not is neither counted nor added
-- to the error list, so that it may be asked twice.
--
-- Atomic because a message must be in hand or in the error list, or done.
redis.call('LLEN', KEYS[2]) -- an error here, if the key is something else, changes nothing
local call = redis.call
local suspected = call('EXISTS', KEYS[4]) == 1
local alone = call('HGET', KEYS[1], 'alone')

local function finish(number)
  if suspected then
    local body = call('HGET', KEYS[1], number)
    if body then
      call('HDEL', KEYS[4], redis.sha1hex(body))
    end
  end
  if alone == number then
    call('HDEL', KEYS[1], 'alone')
  end
end

local handled, failed = 0, 0
local count = tonumber(ARGV[1])
for i = 2, count + 1 do
  finish(ARGV[i])
end
if count > 0 then
  handled = call('HDEL', KEYS[1], unpack(ARGV, 2, count + 1))
end
for i = count + 2, #ARGV, 2 do
  finish(ARGV[i])
  if call('HDEL', KEYS[1], ARGV[i]) == 1 then
    call('LPUSH', KEYS[2], ARGV[i + 1])
    failed = failed + 1
  end
end
if handled > 0 then
  redis.pcall('HINCRBY', KEYS[3], 'handled', handled)
end
if failed > 0 then
  redis.pcall('HINCRBY', KEYS[3], 'failed', failed)
end
return handled + failed
