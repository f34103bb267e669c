-- hold: record which messages hold the line, and count their failures (strict order).
--
-- KEYS[1]  wakeq:{S}:owner:G  HASH  who owns the group
-- KEYS[2]  wakeq:{S}:stats:G  HASH  counters of the group
-- ARGV[1]  held     the messages and their next attempts, as the caller writes them
-- ARGV[2]  failed   how many they are
--
-- Returns 1.
--
-- Atomic because both happen while the caller owns the group. Neither matters enough to fail for
-- when Redis is out of memory.
redis.pcall('HSET', KEYS[1], 'held', ARGV[1])
redis.pcall('HINCRBY', KEYS[2], 'failed', ARGV[2])
return 1
