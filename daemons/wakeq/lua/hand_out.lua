-- hand_out: give one failed message to be repaired, and keep it from others for a while.
--
-- KEYS[1]  wakeq:{S}:delayed:repair  ZSET  due retries that wait for a repair, and when each may be
--                                          handed out, ms
-- KEYS[2]  wakeq:{S}:delayed:data    HASH  the delayed messages, packed
-- ARGV[1]  lease   ms until it may be handed out again, 1..
--
-- Returns an array: now in microseconds; when the next one may be handed out, ms, or ''; and if
-- there was one: its id, a token of what is stored, when it was due, and its items: group, first
-- id, field, value ...
--
-- Atomic because two must not get the same message.
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local lease = now + tonumber(ARGV[1])
local found = {}
for _ = 1, 100 do
  local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1)
  if #due == 0 then
    break
  end
  local data = redis.call('HGET', KEYS[2], due[1])
  local readable, items = pcall(cmsgpack.unpack, data or '')
  if not data then
    redis.call('ZREM', KEYS[1], due[1])
  else
    redis.call('ZADD', KEYS[1], lease, due[1])
    if readable and type(items) == 'table' and #items >= 4 then
      found = {due[1], redis.sha1hex(data), due[2], items}
      break
    end
  end
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2] or ''
return {now_us, next, unpack(found)}
