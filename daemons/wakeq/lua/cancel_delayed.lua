-- cancel_delayed: drop delayed messages of one stream.
--
-- KEYS[1]  wakeq:{S}:delayed         ZSET  when each delayed message is due
-- KEYS[2]  wakeq:{S}:delayed:repair  ZSET  due retries that wait for a repair
-- KEYS[3]  wakeq:{S}:delayed:data    HASH  the delayed messages
-- ARGV[1]  count   how many to drop, 1..1000, those that are due last; 0: the ones that are named
-- ARGV[2..]        their ids, up to 1000
--
-- Returns {how many were dropped, id, id ...}: the ids that there are none of.
--
-- Atomic because a message that is cancelled must not be delivered as well.
local ids = {unpack(ARGV, 2)}
local count = tonumber(ARGV[1])
if count > 0 then
  ids = redis.call('ZREVRANGE', KEYS[1], 0, count - 1)
  if #ids < count then
    for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, count - #ids - 1)) do
      ids[#ids + 1] = id
    end
  end
end
local result = {0}
for _, id in ipairs(ids) do
  local there = redis.call('ZREM', KEYS[1], id) + redis.call('ZREM', KEYS[2], id)
  if there + redis.call('HDEL', KEYS[3], id) > 0 then
    result[1] = result[1] + 1
  else
    result[#result + 1] = id
  end
end
return result
