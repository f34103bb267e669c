-- join: take or keep a consumer's name.
--
-- KEYS[1]  wakeq:{S}:alive:G:C  STRING  the process that has the name, expires
-- ARGV[1]  process   the caller
-- ARGV[2]  dead      a process that had the name and is known to be gone, or ''
-- ARGV[3]  lifetime  ms until the name is free if it is not kept, 1..
--
-- Returns '' if the caller has the name now, else the process that has it.
--
-- Atomic because of two processes with one name only one may have it.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and holder ~= ARGV[2] then
  return holder
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ''
