-- leave: give up a consumer's name, and ring for what it handed back.
--
-- KEYS[1]  wakeq:{S}:alive:G:C  STRING  the process that has the name
-- KEYS[2]  wakeq:{S}:retry:G    STREAM  read by all consumers of the group
-- ARGV[1]  process   the caller
-- ARGV[2]  ring      the consumer's name, to have another one look for what it handed back;
--                    '' if there is nothing
--
-- Returns 1 if the caller had the name, else 0.
--
-- Atomic because the name must be free when the bell rings, and only the caller's is given up.
local had = redis.call('GET', KEYS[1]) == ARGV[1]
if had then
  redis.call('DEL', KEYS[1])
  if ARGV[2] ~= '' then
    redis.call('XADD', KEYS[2], '*', 'wakeq.handed_back', ARGV[2])
  end
end
return had and 1 or 0
