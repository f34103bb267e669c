-- bridge_begin: put a mark between the messages of those before and of the caller.
--
-- KEYS[1]  wakeq:{C}:bridge:B  HASH  which instance of the bridge takes the messages of a channel,
--                                    see bridge_hold.lua; also the name of the channel of the marks
-- ARGV[1]  process  the caller, which has subscribed by now
--
-- Returns 1 if the mark is out, 0 if the caller does not have the channel (any more).
--
-- Atomic because marks must come in the order in which the channel was held: who has lost it must
-- not send one after its successor's.
if redis.call('HGET', KEYS[1], 'process') ~= ARGV[1] then
  return 0
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], 'begun', '1')
return 1
