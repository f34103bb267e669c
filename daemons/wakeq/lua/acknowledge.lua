-- acknowledge: mark messages of one stream as handled, and count them.
--
-- KEYS[1]  S or wakeq:{S}:retry:G   STREAM  where the messages were read from
-- KEYS[2]  wakeq:{S}:stats:G        HASH    counters of the group
-- ARGV[1]  group
-- ARGV[2]  position  id up to which S has been delivered and handled, or '' to leave it
-- ARGV[3]  delete    1: delete the entries too (they are ours), 0: keep them
-- ARGV[4..]          ids, 1..1000
--
-- Returns how many were pending until now.
--
-- Atomic because the counter must match the acknowledgements, also when a caller that lost
-- the reply calls again. Redis that is out of memory still acknowledges: only the counters,
-- which need memory, are then left as they are.
local acknowledged = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 4))
if ARGV[3] == '1' then
  redis.call('XDEL', KEYS[1], unpack(ARGV, 4))
end
redis.pcall('HINCRBY', KEYS[2], 'handled', acknowledged)
if ARGV[2] ~= '' then
  redis.pcall('HSET', KEYS[2], 'position', ARGV[2])
end
return acknowledged
