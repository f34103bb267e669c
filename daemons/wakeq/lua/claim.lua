-- claim: take over messages of consumers that are gone.
--
-- KEYS[1]   S or wakeq:{S}:retry:G  STREAM  the messages
-- KEYS[2..] wakeq:{S}:alive:G:C     STRING  one for each consumer C that may be gone
-- ARGV[1]  group
-- ARGV[2]  consumer   the caller
-- ARGV[3]  idle       only messages that have been pending for this long, ms, 0..
-- ARGV[4]  count      at most this many, 1..1000
-- ARGV[5]  forget     a consumer with nothing pending is deleted after this long, ms
-- ARGV[6..]           the consumers C, in the order of their keys
--
-- Returns the entries claimed, as XCLAIM gives them, each with a third element: how often it
-- has been delivered, this time included. Entries that were deleted from the stream are dropped
-- from the pending ones by XCLAIM itself.
--
-- Atomic because a consumer that comes back must not lose what it has just read, and one that
-- is deleted must have nothing pending.
local idle_of = {}
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local field = {}
  for i = 1, #consumer, 2 do
    field[consumer[i]] = consumer[i + 1]
  end
  idle_of[field.name] = field.idle
end
local claimed = {}
local room = tonumber(ARGV[4])
for i = 2, #KEYS do
  local consumer = ARGV[i + 4]
  if idle_of[consumer] and redis.call('EXISTS', KEYS[i]) == 0 then
    local ids, deliveries = {}, {}
    if room > 0 then
      local pending = redis.call(
        'XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], '-', '+', room, consumer)
      for _, entry in ipairs(pending) do
        ids[#ids + 1] = entry[1]
        deliveries[entry[1]] = entry[4] + 1
      end
    end
    if #ids > 0 then
      room = room - #ids
      for _, entry in ipairs(redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(ids))) do
        claimed[#claimed + 1] = {entry[1], entry[2], deliveries[entry[1]]}
      end
    elseif idle_of[consumer] > tonumber(ARGV[5])
        and #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, consumer) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer)
    end
  end
end
return claimed
