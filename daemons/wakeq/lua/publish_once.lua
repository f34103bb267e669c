-- publish_once: add a message unless one with the same deduplication key was added lately.
--
-- KEYS[1]  S                   STREAM  where the message goes
-- KEYS[2]  wakeq:{S}:dedup:K   STRING  id of the message that was added, expires
-- ARGV[1]  window    how long the key is remembered, ms, 1..
-- ARGV[2..]          field, value, field, value ...
--
-- Returns {id, added}: added is 1, or 0 when id names the earlier message.
--
-- Atomic because two publishers with one key must not both find it free, and a key that is
-- taken must have its message in the stream.
local earlier = redis.call('GET', KEYS[2])
if earlier then
  return {earlier, 0}
end
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
redis.call('SET', KEYS[2], id, 'PX', ARGV[1])
return {id, 1}
