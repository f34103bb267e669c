-- drop_strays: drop stored messages that nobody will ever deliver, because they are in no set.
--
-- KEYS[1]  wakeq:{S}:delayed         ZSET  when each delayed message is due
-- KEYS[2]  wakeq:{S}:delayed:repair  ZSET  due retries that wait for a repair
-- KEYS[3]  wakeq:{S}:delayed:data    HASH  the delayed messages
-- ARGV[1]  cursor   0 at first, then the one returned, until that is 0 again
-- ARGV[2]  count    look at about so many, 1..1000
--
-- Returns {cursor, id, id ...}: what was dropped. Whoever took them out of the set by hand wanted
-- them gone; no script of wakeq leaves one behind.
--
-- Atomic because a message that is just being added must be seen in both places or in none.
local page = redis.call('HSCAN', KEYS[3], ARGV[1], 'COUNT', ARGV[2])
local result = {page[1]}
for i = 1, #page[2], 2 do
  local id = page[2][i]
  if not redis.call('ZSCORE', KEYS[1], id) and not redis.call('ZSCORE', KEYS[2], id) then
    redis.call('HDEL', KEYS[3], id)
    result[#result + 1] = id
  end
end
return result
