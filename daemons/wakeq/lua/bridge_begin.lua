-- bridge_begin: put a mark between the messages of those before and of the caller.
--
-- KEYS[1]  wakeq:{C}:bridge:B  HASH  which instance of the bridge takes the messages of a channel,
--                                    see bridge_hold.lua
-- ARGV[1]  process    the caller, which has asked to be subscribed
-- ARGV[2]  probe      a channel that it has subscribed to right after that
-- ARGV[3]  confirmed  1 if it has seen the reply, 0 if not yet
-- ARGV[4]  marks      the channel of the marks
--
-- Returns 1 if the mark is out, 0 if the caller does not have the channel (any more), -1 if it is not
-- subscribed yet.
--
-- Atomic because marks must come in the order in which the channel was held: who has lost it must
-- not send one after its successor's.
if redis.call('HGET', KEYS[1], 'process') ~= ARGV[1] then
  return 0
end
if ARGV[3] ~= '1' then
  local heard = redis.pcall('PUBSUB', 'NUMSUB', ARGV[2]) -- the user may not be permitted to ask
  if heard.err or heard[2] == 0 then
    return -1
  end
end
redis.call('PUBLISH', ARGV[4], ARGV[1])
redis.call('HSET', KEYS[1], 'begun', '1')
return 1
