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
-- ARGV[5..]          for each message to be added: how many items follow, below 0 for a dead
--                    letter; field, value, field, value ..., 1 to 3900 fields
--
-- Returns 1, or 0 if the batch was published before: the reply was lost, or the worker died, or
-- another instance has taken the entry.
--
-- Atomic because a batch is published as a whole or not at all, and once.
local last = redis.call('GET', KEYS[2])
if last and tonumber(last) >= tonumber(ARGV[1]) then
  return 0
end
redis.call('XLEN', KEYS[1]) -- an error here, if a key is something else, changes nothing
redis.call('XLEN', KEYS[4])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
if ARGV[4] ~= '' and redis.call('XDEL', KEYS[5], ARGV[4]) == 0 then
  return 0
end
local published, dead = 0, 0
local at = 5
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  if count > 0 then
    redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + count))
    published = published + 1
  else
    count = -count
    local time = redis.call('TIME')
    local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
    redis.call('XADD', KEYS[4], '*', 'wakeq.failed_at', now, 'wakeq.first_failed_at', now,
      unpack(ARGV, at + 1, at + count))
    dead = dead + 1
  end
  at = at + 1 + count
end
redis.pcall('HINCRBY', KEYS[3], 'handled', ARGV[3])
redis.pcall('HINCRBY', KEYS[3], 'published', published)
if dead > 0 then
  redis.pcall('HINCRBY', KEYS[3], 'dead', dead)
end
return 1
