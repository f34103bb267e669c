-- publish_and_acknowledge: publish what a handler returned and acknowledge its message.
--
-- KEYS[1]   S or wakeq:{S}:retry:G  STREAM  where the message was read from
-- KEYS[2]   wakeq:{S}:stats:G       HASH    counters of the group
-- KEYS[3..] the streams to publish to, one for each message, in order
-- ARGV[1]  group
-- ARGV[2]  delete    1: delete the entry too (it is ours), 0: keep it
-- ARGV[3]  position  id up to which S has been delivered and handled, or '' to leave it
-- ARGV[4]  count of the handled messages, 1..1000, followed by their ids
-- ARGV[..]           for each message to publish: how many arguments follow, then field,
--                    value, field, value ...; 1 to 3995 fields
--
-- Returns how many of the handled messages were pending until now; if none was, the caller
-- asks a second time and nothing is published.
--
-- Atomic because either all of it happens or nothing: a stream that cannot be published to
-- and a message that cannot be added are found before the first one is added.
local handled = tonumber(ARGV[4])
local ids = {}
local pending = 0
for i = 5, 4 + handled do
  ids[#ids + 1] = ARGV[i]
  pending = pending + #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
end
if pending == 0 then
  return 0
end
for i = 3, #KEYS do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= 'stream' and kind ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is a ' .. kind .. ', not a stream')
  end
end
local first = 5 + handled
local at = first
for i = 3, #KEYS do
  local count = tonumber(ARGV[at])
  -- Lua passes no more than 8000 arguments on.
  if count < 2 or count % 2 == 1 or count > 7990 then
    return redis.error_reply('ERR ' .. KEYS[i] .. ' cannot take a message of ' .. count / 2
      .. ' fields, only of 1 to 3995')
  end
  at = at + 1 + count
end
at = first
for i = 3, #KEYS do
  local count = tonumber(ARGV[at])
  redis.call('XADD', KEYS[i], '*', unpack(ARGV, at + 1, at + count))
  at = at + 1 + count
end
local acknowledged = redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
if ARGV[2] == '1' then
  redis.call('XDEL', KEYS[1], unpack(ids))
end
redis.pcall('HINCRBY', KEYS[2], 'handled', acknowledged)
redis.pcall('HINCRBY', KEYS[2], 'published', #KEYS - 2)
if ARGV[3] ~= '' then
  redis.pcall('HSET', KEYS[2], 'position', ARGV[3])
end
return acknowledged
