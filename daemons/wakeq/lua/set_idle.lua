-- set_idle: say how long a consumer's own pending messages have been idle.
--
-- 0 keeps messages that are still being handled; a very long time hands back those that are
-- not, so that another consumer can claim them at once. Those that were never begun are given the
-- count of deliveries that they had before, or they would be suspects after a few stops.
--
-- KEYS[1]  S or wakeq:{S}:retry:G  STREAM  where the messages were read from
-- ARGV[1]  group
-- ARGV[2]  consumer
-- ARGV[3]  idle        ms, 0..
-- ARGV[4]  deliveries  what is counted from now on, 0..; '' leaves the count as it is
-- ARGV[5..]            ids, 1..1000
--
-- Returns the ids that the consumer does not have any more.
--
-- Atomic because XCLAIM takes a message from whoever has it: it must still be the consumer's.
local gone = {}
local own = {}
for i = 5, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #pending == 0 then
    gone[#gone + 1] = ARGV[i]
  else
    own[#own + 1] = ARGV[i]
  end
end
if #own > 0 then
  own[#own + 1] = 'IDLE'
  own[#own + 1] = ARGV[3]
  if ARGV[4] ~= '' then
    own[#own + 1] = 'RETRYCOUNT'
    own[#own + 1] = ARGV[4]
  end
  own[#own + 1] = 'JUSTID'
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(own))
end
return gone
