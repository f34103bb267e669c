-- schedule: keep a message until it is due; unless one with the same deduplication key was taken.
--
-- KEYS[1]  S                       STREAM  where the message goes when it is due
-- KEYS[2]  wakeq:{S}:delayed       ZSET    when each delayed message is due, ms
-- KEYS[3]  wakeq:{S}:delayed:data  HASH    the delayed messages
-- KEYS[4]  wakeq:{S}:dedup:K       STRING  id of the message that was taken, expires; may be left
--                                          out, then nothing is looked for
-- ARGV[1]  channel  where to tell of a message that is due before all others
-- ARGV[2]  stream   S
-- ARGV[3]  kind     in: ARGV[4] counts from now, at: it is the time itself, since 1970
-- ARGV[4]  due      ms; a time that has passed is now
-- ARGV[5]  window   how long the deduplication key is remembered, ms, 1..; at least until the
--                   message has been delivered
-- ARGV[6..]         field, value, field, value ..., 1 to 3900 fields
--
-- The message is packed as {'', id, field, value ...}, the id among the fields, so that it keeps
-- the id that it was published with. An id looks like that of an entry, but no entry has it:
-- the sequence is 1000000 or more.
--
-- Returns {id, added, due}: added is 1, or 0 when id names the earlier message; due in ms.
--
-- Atomic because the key that is taken, the message and its time must be there together. Redis
-- that is out of memory refuses before anything has changed.
local most, window = 3900, tonumber(ARGV[5])
if KEYS[4] then
  local earlier = redis.call('GET', KEYS[4])
  if earlier then
    return {earlier, 0, 0}
  end
end
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'stream' and kind ~= 'none' then
  return redis.error_reply('WRONGTYPE ' .. KEYS[1] .. ' is a ' .. kind .. ', not a stream')
end
local fields = (#ARGV - 5) / 2
if fields < 1 or fields > most or fields % 1 > 0 then
  return redis.error_reply('ERR a delayed message has 1 to ' .. most .. ' fields, not ' .. fields)
end
-- Is it a set, before anything is added to the hash?
redis.call('ZCARD', KEYS[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = tonumber(ARGV[4])
if ARGV[3] == 'in' then
  due = now + due
end
due = math.max(due, now)
local number = 1000000 + (time[2] % 1000) * 1000
local id
repeat
  id = string.format('%d-%d', now, number)
  number = number + 1
until redis.call('HEXISTS', KEYS[3], id) == 0
local items = {'', id, 'wakeq.first_id', id}
for i = 6, #ARGV do
  items[i - 1] = ARGV[i]
end
if KEYS[4] then
  -- First, because it fails if the window is out of range.
  redis.call('SET', KEYS[4], id, 'PX', math.max(window, due - now + 60000))
end
redis.call('HSET', KEYS[3], id, cmsgpack.pack(items))
redis.call('ZADD', KEYS[2], due, id)
if redis.call('ZRANGE', KEYS[2], 0, 0)[1] == id then
  -- A hint only, and not everybody may publish.
  redis.pcall('PUBLISH', ARGV[1], ARGV[2])
end
return {id, 1, due}
