-- bridge: put ahead of bridge_publish and bridge_move: what both do with what a worker has made.
--
-- KEYS[1]  S                              STREAM   where it goes
-- KEYS[2]  wakeq:{S}:bridge:B:batch:W     STRING   the step's own
-- KEYS[3]  wakeq:{S}:stats:bridge/B       HASH     counters of the bridge
-- KEYS[4]  wakeq:{S}:dead:bridge/B        STREAM   its dead letters
-- ARGV[1]  number    the step's own
-- ARGV[2]  keep      the step's own
-- ARGV[3]  received  how many messages the batch has
-- ARGV[4..]          the step's own; from where it says on, for each message to be added: how many
--                    items follow, below 0 for a dead letter; field, value, field, value ...,
--                    1 to 3900 fields
--
-- Returns nothing; the step does.
--
-- Atomic because it is one script with the one that it stands ahead of.
redis.call('XLEN', KEYS[1]) -- an error here, if a key is something else, changes nothing
redis.call('XLEN', KEYS[4])

-- Add what the arguments from `at` on say, and count it.
local function publish(at)
  local published, dead = 0, 0
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
end

