-- publish_taken: publish what a handler returned, and let go of its message of a list.
--
-- KEYS[1]   wakeq:{L}:taken:T   HASH    what the caller has in hand, by number
-- KEYS[2]   wakeq:{L}:stats:N   HASH    counters of the node
-- KEYS[3]   wakeq:{L}:suspects  HASH    messages that were in hand when their taker died
-- KEYS[4..] the streams to publish to, one for each message, in order
-- ARGV[1]  count of the handled messages, 1..1000; their numbers follow
-- ARGV[2..] then, for each message to publish: how many arguments follow, then field, value,
--           field, value ...; 1 to 3995 fields
--
-- Returns how many of the handled messages the caller had in hand until now; if it had none, it
-- asks a second time and nothing is published.
--
-- Atomic because either all of it happens or nothing: a stream that cannot be published to and a
-- message that cannot be added are found before the first one is added.
local call = redis.call
local handled = tonumber(ARGV[1])
local first = 2 + handled
local taken = 0
for i = 2, 1 + handled do
  taken = taken + call('HEXISTS', KEYS[1], ARGV[i])
end
if taken == 0 then
  return 0
end
local at = first
for i = 4, #KEYS do
  local kind = call('TYPE', KEYS[i]).ok
  if kind ~= 'stream' and kind ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is a ' .. kind .. ', not a stream')
  end
  local count = tonumber(ARGV[at])
  -- Lua passes no more than 8000 arguments on.
  if count < 2 or count % 2 == 1 or count > 7990 then
    return redis.error_reply('ERR ' .. KEYS[i] .. ' cannot take a message of ' .. count / 2
      .. ' fields, only of 1 to 3995')
  end
  at = at + 1 + count
end
at = first
for i = 4, #KEYS do
  local count = tonumber(ARGV[at])
  call('XADD', KEYS[i], '*', unpack(ARGV, at + 1, at + count))
  at = at + 1 + count
end
local suspected = call('EXISTS', KEYS[3]) == 1
local alone = call('HGET', KEYS[1], 'alone')
for i = 2, 1 + handled do
  if suspected then
    call('HDEL', KEYS[3], redis.sha1hex(call('HGET', KEYS[1], ARGV[i]) or ''))
  end
  if alone == ARGV[i] then
    call('HDEL', KEYS[1], 'alone')
  end
end
call('HDEL', KEYS[1], unpack(ARGV, 2, 1 + handled))
redis.pcall('HINCRBY', KEYS[2], 'handled', taken)
redis.pcall('HINCRBY', KEYS[2], 'published', #KEYS - 3)
return taken
