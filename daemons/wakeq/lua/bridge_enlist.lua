-- bridge_enlist: have the ids of the workers that live stand in a list, and no others.
--
-- KEYS[1]  consumer:ids                   LIST  the ids
-- KEYS[2]  wakeq:{consumer:ids}:enlisted  ZSET  until when each of them lives, ms
-- ARGV[1]  lifetime  ms until an id is removed that is not named again
-- ARGV[2]  gone      how many of the ids that follow are to be removed
-- ARGV[3..]          ids to be removed, then those that live, all in all 0..1000
--
-- Returns how many were removed.
--
-- An id that stands in the list and is not known here was put there by somebody else, and stays.
--
-- Atomic because several instances of several bridges add to the list and remove from it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local removed = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%d', now),
  'LIMIT', 0, 1000)
for i = 3, 2 + ARGV[2] do
  if redis.call('ZSCORE', KEYS[2], ARGV[i]) then
    removed[#removed + 1] = ARGV[i]
  end
end
for _, id in ipairs(removed) do
  redis.call('LREM', KEYS[1], 0, id)
  redis.call('ZREM', KEYS[2], id)
end
for i = 3 + ARGV[2], #ARGV do
  if redis.call('ZADD', KEYS[2], string.format('%d', now + ARGV[1]), ARGV[i]) == 1 then
    redis.call('LREM', KEYS[1], 0, ARGV[i])
    redis.call('RPUSH', KEYS[1], ARGV[i])
  elseif not redis.call('LPOS', KEYS[1], ARGV[i]) then
    redis.call('RPUSH', KEYS[1], ARGV[i])
  end
end
return #removed
