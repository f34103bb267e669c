-- bridge_requeue: put dead letters that are to be tried again back into the list they came from.
--
-- KEYS[1]  wakeq:{S}:retry:bridge/B  STREAM  those of the bridge
-- KEYS[2]  L                         LIST    the elements
-- ARGV[1]  end   RIGHT or LEFT, the end of the list where elements are taken
-- ARGV[2]  most  put back at most so many, 1..1000
--
-- Returns how many were put back.
--
-- Atomic because a message must be in one of the two.
local entries = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[2])
for _, entry in ipairs(entries) do
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'body' then
      redis.call(ARGV[1] == 'RIGHT' and 'RPUSH' or 'LPUSH', KEYS[2], entry[2][i + 1])
    end
  end
  redis.call('XDEL', KEYS[1], entry[1])
end
return #entries
