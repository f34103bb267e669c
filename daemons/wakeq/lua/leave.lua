-- leave: give up a consumer's name, and the group if it owns that, and ring for who is to go on.
--
-- KEYS[1]  wakeq:{S}:alive:G:C  STRING  the process that has the name
-- KEYS[2]  wakeq:{S}:retry:G    STREAM  read by all consumers of the group
-- KEYS[3]  wakeq:{S}:owner:G    HASH    who owns the group (strict order)
-- KEYS[4]  wakeq:{S}:turn:G     STREAM  read by those that wait to own it, expires
-- ARGV[1]  process   the caller
-- ARGV[2]  ring      the consumer's name, to have another one look for what it handed back;
--                    '' if there is nothing
-- ARGV[3]  token     its fencing token if it owns the group (strict order), else ''
--
-- Returns 1 if the caller had the name, else 0.
--
-- Rings at KEYS[4] if somebody waits there, else at KEYS[2], where there is work for whoever may
-- be woken.
--
-- Atomic because the name must be free when the bell rings, and only the caller's is given up.
local ring = ARGV[2]
local had = redis.call('GET', KEYS[1]) == ARGV[1]
if had then
  redis.call('DEL', KEYS[1])
end
if ARGV[3] ~= '' and redis.call('HGET', KEYS[3], 'token') == ARGV[3] then
  redis.call('HDEL', KEYS[3], 'process', 'until')
  local time = redis.call('TIME')
  if tonumber(redis.call('HGET', KEYS[3], 'standby') or '0') > time[1] * 1000 then
    ring = ''
    redis.call('XADD', KEYS[4], 'MAXLEN', 1, '*', 'wakeq.left', ARGV[3])
    redis.call('PEXPIRE', KEYS[4], 60000)
  end
end
if ring ~= '' and had then
  redis.call('XADD', KEYS[2], '*', 'wakeq.handed_back', ring)
end
return had and 1 or 0
