-- make_due: have delayed messages of one stream delivered now.
--
-- KEYS[1]  wakeq:{S}:delayed         ZSET  when each delayed message is due, ms
-- KEYS[2]  wakeq:{S}:delayed:repair  ZSET  due retries that wait for a repair: they are due already
-- ARGV[1]  channel  where to tell of it
-- ARGV[2]  stream   S
-- ARGV[3]  count    how many, 1..1000, those that are due last; 0: the ones that are named
-- ARGV[4..]         their ids, up to 1000
--
-- Returns {how many are due now and were not, id, id ...}: the ids that there are none of.
--
-- Atomic because a message that was delivered in the meantime must not come back into the set.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ids = {unpack(ARGV, 4)}
local count = tonumber(ARGV[3])
if count > 0 then
  ids = redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', '(' .. now, 'LIMIT', 0, count)
end
local result = {0}
for _, id in ipairs(ids) do
  local due = redis.call('ZSCORE', KEYS[1], id)
  if due and tonumber(due) > now then
    redis.call('ZADD', KEYS[1], now, id)
    result[1] = result[1] + 1
  elseif not due and not redis.call('ZSCORE', KEYS[2], id) then
    result[#result + 1] = id
  end
end
if result[1] > 0 then
  -- A hint only, and not everybody may publish.
  redis.pcall('PUBLISH', ARGV[1], ARGV[2])
end
return result
