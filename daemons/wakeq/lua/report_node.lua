-- report_node: keep what a process of a node says of itself.
--
-- KEYS[1]  wakeq:{S}:node:NAME:HOST/PID  HASH, expires  the process
-- KEYS[2]  wakeq:{S}:nodes:NAME          ZSET, expires  all processes, until when each is believed to
--                                                       live, ms
-- ARGV[1]  process   HOST/PID
-- ARGV[2]  lifetime  for how long it is believed to live, ms, 1..; 0: it ends
-- ARGV[3..]          field, value ..., 1 or more; none if it ends
--
-- Returns 1.
--
-- Atomic because who looks finds no process without what it says.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. string.format('%d', now))
redis.call('DEL', KEYS[1])
if ARGV[2] == '0' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 1
end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], string.format('%d', now + ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
