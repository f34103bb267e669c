-- bridge_return: put what a worker that is gone had taken back into the list.
--
-- KEYS[1]  L                            LIST    the elements
-- KEYS[2]  wakeq:{L}:bridge:B:taken:W   LIST    those that the worker has taken, in their order
-- KEYS[3]  wakeq:{L}:bridge:B:takers    SET     the workers that may have taken something
-- KEYS[4]  wakeq:{S}:bridge:B:batch:W   STRING  the number of its batch
-- KEYS[5]  wakeq:{S}:alive:bridge/B:I   STRING  the process of its instance, while that lives
-- ARGV[1]  worker
-- ARGV[2]  end      RIGHT or LEFT, the end of the list where they were taken
-- ARGV[3]  process  this one does not count as alive: the caller, of a worker that it has no more
--
-- Returns how many were put back, -1 if the instance lives.
--
-- Atomic because an element is in the list or taken, and the worker may come back.
local process = redis.call('GET', KEYS[5])
if process and process ~= ARGV[3] then
  return -1
end
local count = 0
while redis.call('LMOVE', KEYS[2], KEYS[1], 'RIGHT', ARGV[2]) do
  count = count + 1
end
-- What a process of the worker may still publish is another batch.
if count > 0 and redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('INCR', KEYS[4])
end
redis.call('SREM', KEYS[3], ARGV[1])
return count
