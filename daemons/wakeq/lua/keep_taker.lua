-- keep_taker: join those who take messages of a list, or stay among them.
--
-- KEYS[1]  wakeq:{L}:takers  ZSET  who takes messages, and until when each is believed to live
-- ARGV[1]  taker     the caller
-- ARGV[2]  given_up  the name that it stands under if it was taken for dead
-- ARGV[3]  lifetime  ms until it counts as dead if it does not ask again, 1..
-- ARGV[4]  all       1: return all the others; 0: those alone whose time is over
--
-- Returns {known, now, taker, ...}: whether the caller was among them: 1 yes, 0 no, but it is now,
-- -1 it was taken for dead and is not; the time in ms; others, 100 at most if their time is over.
--
-- Times further away than any lifetime were given before the clock was set back, and are cut short.
--
-- Atomic because who was taken for dead must not join again under the same name.
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = string.format('%d', now + ARGV[3])
local known = call('ZADD', KEYS[1], 'XX', 'CH', last, ARGV[1])
-- 0 as well if it is asked twice within a millisecond.
if known == 0 and call('ZSCORE', KEYS[1], ARGV[1]) then
  known = 1
elseif known == 0 and call('ZSCORE', KEYS[1], ARGV[2]) then
  known = -1
elseif known == 0 then
  call('ZADD', KEYS[1], last, ARGV[1])
end
local result = {known, now}
local others
if ARGV[4] == '1' then
  others = call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
  for i = 2, #others, 2 do
    if tonumber(others[i]) > now + 10 * ARGV[3] then
      call('ZADD', KEYS[1], last, others[i - 1])
    end
    result[#result + 1] = others[i - 1]
  end
else
  others = call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)
  for _, other in ipairs(others) do
    result[#result + 1] = other
  end
end
return result
