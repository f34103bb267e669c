-- bridge_move: publish what a worker has made of elements of a list, and take the next ones.
--
-- KEYS[1]  S                            STREAM  where they go
-- KEYS[2]  wakeq:{S}:bridge:B:batch:W   STRING, expires  the number of the batch in KEYS[6]
-- KEYS[3]  wakeq:{S}:stats:bridge/B     HASH    counters of the bridge
-- KEYS[4]  wakeq:{S}:dead:bridge/B      STREAM  its dead letters
-- KEYS[5]  L                            LIST    the elements
-- KEYS[6]  wakeq:{L}:bridge:B:taken:W   LIST    those that the worker has taken, in their order
-- KEYS[7]  wakeq:{L}:bridge:B:takers    SET     the workers that may have taken something
-- ARGV[1]  number    of the batch whose outcome follows, '' if none does
-- ARGV[2]  keep      how long the number is remembered, ms
-- ARGV[3]  received  how many elements the batch has
-- ARGV[4]  worker
-- ARGV[5]  end       RIGHT or LEFT, the end of the list where they are taken
-- ARGV[6]  most      take at most so many, 0..1000; 0 takes none
-- ARGV[7]  bytes     take no more once there are so many
-- ARGV[8..]          for each message to be added: as bridge.lua says
--
-- Returns {number, element, ...}: the batch that the worker has now.
--
-- Atomic because an element is in the list, or taken, or published. If the batch has been published
-- before, because the reply was lost or the worker is a process that was taken for dead, its number
-- is another one by now, and what follows is left alone.
redis.call('LLEN', KEYS[5]) -- an error here, if it is something else, changes nothing
local number = tonumber(redis.call('GET', KEYS[2]) or '1')
if ARGV[1] ~= '' and tonumber(ARGV[1]) == number then
  publish(8)
  -- Not all of it: another process of the worker may have added to it since.
  redis.call('LTRIM', KEYS[6], ARGV[3], -1)
  number = number + 1
end
redis.call('SET', KEYS[2], string.format('%d', number), 'PX', ARGV[2])
local batch = redis.call('LRANGE', KEYS[6], 0, -1)
if #batch == 0 and tonumber(ARGV[6]) > 0 then
  local size = 0
  while #batch < tonumber(ARGV[6]) and size < tonumber(ARGV[7]) do
    local element = redis.call('LMOVE', KEYS[5], KEYS[6], ARGV[5], 'RIGHT')
    if not element then
      break
    end
    batch[#batch + 1] = element
    size = size + #element
  end
end
if #batch > 0 or tonumber(ARGV[6]) > 0 then
  redis.call('SADD', KEYS[7], ARGV[4]) -- who is given none waits for one in KEYS[6]
else
  redis.call('SREM', KEYS[7], ARGV[4])
end
table.insert(batch, 1, string.format('%d', number))
return batch
