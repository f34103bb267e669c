-- return_taken: put all that a taker has in hand back into the list, in its old order, to be taken
-- next: of one that leaves, or has died.
--
-- KEYS[1]  L                    LIST  the messages
-- KEYS[2]  wakeq:{L}:taken:T    HASH  what the taker has in hand, by number
-- KEYS[3]  wakeq:{L}:taking:T   LIST  what it got by waiting, newer than that
-- KEYS[4]  wakeq:{L}:takers     ZSET  who takes messages
-- KEYS[5]  wakeq:{L}:suspects   HASH  messages that were in hand when their taker died
-- ARGV[1]  taker   as it stands among the takers
-- ARGV[2]  why     left: it leaves; dead: it is known to be dead; late: if its time is over
-- ARGV[3]  again   a name to look after it under for longer, '' for none
-- ARGV[4]  wait    when to look, ms from now
-- ARGV[5]  memory  how long suspects are remembered, ms
--
-- Returns how many were put back, -1 if its time is not over.
--
-- What the taker has asked for may still come to it: a request on its way, a client that waits. So
-- there is a look later, under another name that it cannot take by.
--
-- A taker has no more than 2000 messages in hand.
--
-- Atomic because a message must be in the list or in hand of one taker, and two may find the same
-- one dead.
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[2] == 'late' then
  local last = call('ZSCORE', KEYS[4], ARGV[1])
  if not last or tonumber(last) > now then
    return -1
  end
end
call('LLEN', KEYS[1]) -- an error here, if the key is something else, changes nothing
local count = 0
while call('LMOVE', KEYS[3], KEYS[1], 'LEFT', 'RIGHT') do
  count = count + 1
end
local alone = call('HGET', KEYS[2], 'alone')
local numbers = {}
for _, number in ipairs(call('HKEYS', KEYS[2])) do
  if number ~= 'alone' then
    numbers[#numbers + 1] = tonumber(number)
  end
end
table.sort(numbers, function(one, other) return one > other end)
for _, each in ipairs(numbers) do
  local number = string.format('%d', each)
  local body = call('HGET', KEYS[2], number)
  call('RPUSH', KEYS[1], body)
  if ARGV[2] ~= 'left' and (not alone or alone == number) then
    -- Any of them may have ended it; if one was alone, that one.
    local name = redis.sha1hex(body)
    local times, solo = string.match(call('HGET', KEYS[5], name) or '0 0', '(%d+) (%d+)')
    call('HSET', KEYS[5], name, string.format('%d %d', times + 1, solo + (alone and 1 or 0)))
    call('PEXPIRE', KEYS[5], ARGV[5])
  end
end
call('DEL', KEYS[2])
call('ZREM', KEYS[4], ARGV[1])
if ARGV[3] ~= '' and (count + #numbers > 0 or ARGV[3] ~= ARGV[1]) then
  call('ZADD', KEYS[4], string.format('%d', now + ARGV[4]), ARGV[3])
end
return count + #numbers
