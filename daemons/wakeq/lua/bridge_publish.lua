-- bridge_publish: publish what a worker has made of a batch of messages, once.
--
-- KEYS[1]  S                              STREAM   where they go
-- KEYS[2]  wakeq:{S}:bridge:B:batch:W     STRING, expires  the last batch of the worker
-- KEYS[3]  wakeq:{S}:stats:bridge/B       HASH     counters of the bridge
-- KEYS[4]  wakeq:{S}:dead:bridge/B        STREAM   its dead letters
-- KEYS[5]  wakeq:{S}:retry:bridge/B       STREAM   dead letters that are to be tried again
-- ARGV[1]  number    of the batch, higher than those before
-- ARGV[2]  keep      how long that is remembered, ms
-- ARGV[3]  received  how many messages the batch has
-- ARGV[4]  entry     the id in KEYS[5] of the one message of the batch, '' if it is none of those
-- ARGV[5..]          for each message to be added: as bridge.lua says
--
-- Returns 1, or 0 if the batch was published before: the reply was lost, or the worker died, or
-- another instance has taken the entry.
--
-- Atomic because a batch is published as a whole or not at all, and once.
local last = redis.call('GET', KEYS[2])
if last and tonumber(last) >= tonumber(ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
if ARGV[4] ~= '' and redis.call('XDEL', KEYS[5], ARGV[4]) == 0 then
  return 0
end
publish(5)
return 1
