-- finish_repair: move a message whose repair is over to its retry stream or to the dead letters.
--
-- KEYS[1]  wakeq:{S}:delayed:repair          ZSET    due retries that wait for a repair
-- KEYS[2]  wakeq:{S}:delayed:data            HASH    the delayed messages, packed
-- KEYS[3]  wakeq:{S}:retry:G or ...:dead:G   STREAM  where it goes
-- KEYS[4]  wakeq:{S}:stats:G                 HASH    counters of the group
-- ARGV[1]  id
-- ARGV[2]  token   of what is stored, as hand_out gave it
-- ARGV[3]  dead    1: it is a dead letter; the field wakeq.failed_at is added
-- ARGV[4..]        field, value, field, value ..., 1 to 3990 fields
--
-- Returns the new id, or '' if the message is not there any more as it was handed out: somebody
-- else has repaired or cancelled it; then nothing is done.
--
-- Atomic because a message must be in exactly one place, also when it was handed out twice.
local data = redis.call('HGET', KEYS[2], ARGV[1])
if not data or redis.sha1hex(data) ~= ARGV[2] then
  return ''
end
local entry
if ARGV[3] == '1' then
  local time = redis.call('TIME')
  local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
  entry = redis.call('XADD', KEYS[3], '*', 'wakeq.failed_at', now, unpack(ARGV, 4))
  redis.pcall('HINCRBY', KEYS[4], 'dead', 1)
else
  entry = redis.call('XADD', KEYS[3], '*', unpack(ARGV, 4))
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return entry
