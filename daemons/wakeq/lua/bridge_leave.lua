-- bridge_leave: offer a channel to the other instances of the bridge.
--
-- KEYS[1]  wakeq:{C}:bridge:B            HASH  which instance takes the messages of a channel, see
--                                              bridge_hold.lua
-- KEYS[2]  wakeq:{C}:bridge:B:instances  ZSET  the instances that would, until when (ms)
-- ARGV[1]  instance  the caller
-- ARGV[2]  process   the caller
-- ARGV[3]  stops     1: it would not take it any more, 0: it would, if nobody else does
-- ARGV[4]  marks     the channel of the marks
--
-- Returns how many other instances there are; 0 if the caller did not have the channel.
--
-- Atomic because the next one may take it from here on.
if ARGV[3] == '1' then
  redis.call('ZREM', KEYS[2], ARGV[1])
end
if redis.call('HGET', KEYS[1], 'process') ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'instance', '', 'process', '', 'begun', '0')
-- A hint only: they ask now and then.
redis.call('PUBLISH', ARGV[4], '')
return redis.call('ZCARD', KEYS[2]) - (ARGV[3] == '1' and 0 or 1)
