-- bridge_hold: ask for the messages of a channel, or keep them.
--
-- KEYS[1]  wakeq:{C}:bridge:B            HASH, expires  which instance of the bridge takes them:
--            instance, process  it; empty if nobody does
--            until              until when at least, ms
--            begun              1 once its mark is out, see bridge_begin.lua
-- KEYS[2]  wakeq:{C}:bridge:B:instances  ZSET, expires  the instances that would, until when (ms)
-- ARGV[1]  instance  the caller
-- ARGV[2]  process   the caller, as nobody else ever describes itself
-- ARGV[3]  lease     ms, 1..
-- ARGV[4]  wants     1: to take them if it can be, 0: only to keep them
-- ARGV[5]  line      what the names of the channels begin with that living processes listen to
--
-- Returns {holds, instance, instances, taken}: 1 if the caller has them, else 0; which instance has
-- them, '' if none; how many instances would; 1 if the caller has not had them until now.
--
-- They are free if nobody has them, if the lease is over, or if the connection is gone by which they
-- were received. The last is what Redis itself knows, and is the quickest: nothing is lost by taking
-- over then, because nobody receives them. The name of an instance is given to one process at a
-- time, so a holder of that name is the caller's predecessor.
--
-- Atomic because two that find them free must not both have them.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = string.format('%d', now + ARGV[3])
redis.call('ZADD', KEYS[2], last, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. string.format('%d', now))
redis.call('PEXPIRE', KEYS[2], ARGV[3])
local instances = redis.call('ZCARD', KEYS[2])

local seen = redis.call('HMGET', KEYS[1], 'instance', 'process', 'until', 'begun')
local instance, process, over = seen[1] or '', seen[2] or '', tonumber(seen[3] or '0')
local taken = 0
if process ~= ARGV[2] then
  local free = process == '' or instance == ARGV[1] or over <= now
  -- Nobody is to be free for longer than a lease because a clock was set back.
  free = free or over > now + 10 * ARGV[3]
  if not free and seen[4] == '1' then
    local heard = redis.pcall('PUBSUB', 'NUMSUB', ARGV[5] .. process)
    free = not heard.err and heard[2] == 0
  end
  if not free or ARGV[4] ~= '1' then
    return {0, instance, instances, 0}
  end
  taken = 1
  redis.call('HSET', KEYS[1], 'instance', ARGV[1], 'process', ARGV[2], 'begun', '0')
end
redis.call('HSET', KEYS[1], 'until', last)
redis.call('PEXPIRE', KEYS[1], 10 * ARGV[3])
return {1, ARGV[1], instances, taken}
