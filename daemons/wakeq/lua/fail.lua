-- fail: move messages that failed to the delayed ones, for another try, or to the dead letters.
--
-- KEYS[1]  S or wakeq:{S}:retry:G   STREAM  where the messages were read from
-- KEYS[2]  wakeq:{S}:stats:G        HASH    counters of the group
-- KEYS[3]  wakeq:{S}:delayed        ZSET    when each delayed message is due, ms
-- KEYS[4]  wakeq:{S}:delayed:data   HASH    the delayed messages
-- KEYS[5]  wakeq:{S}:dead:G         STREAM  dead letters of the group
-- ARGV[1]  group
-- ARGV[2]  consumer   who has the messages
-- ARGV[3]  delete     1: delete the entries too (they are ours), 0: keep them
-- ARGV[4]  position   id up to which S has been delivered and handled, or '' to leave it
-- ARGV[5]  stream     S
-- ARGV[6]  channel    where to tell of a message that is due before all others
-- ARGV[7..]           for each message six: its id in KEYS[1]; {first id}@{group}; the delay in ms,
--                     or -1 for the dead letters; and itself in three parts, between which the
--                     time goes, as 13 digits: twice, or once if the second part is empty
--
-- A delayed message is packed as {group, first id, field, value ...} (cmsgpack); it goes to the
-- group's retry stream when it is due. The caller has done that, for it takes a script longer than
-- all the rest.
--
-- Returns for each message when it is due, in ms; 0: it is a dead letter; -1: the consumer did
-- not have it (any more), and nothing was done.
--
-- Atomic because a message must be in exactly one place, also when the caller lost the reply
-- and calls again. Redis that is out of memory refuses before anything has changed.
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%d', now)

local soonest, any_dead
for at = 9, #ARGV, 6 do
  local delay = tonumber(ARGV[at])
  if delay < 0 then
    any_dead = true
  elseif not soonest or delay < soonest then
    soonest = delay
  end
end
-- If a key is something else, that is an error before anything has changed: here, or where the
-- first message is kept.
local rings = soonest and call('ZCOUNT', KEYS[3], '-inf', now + soonest) == 0
if any_dead then
  call('HLEN', KEYS[4])
  call('XLEN', KEYS[5])
end

local results, done = {}, {}
local dead = 0
for at = 7, #ARGV, 6 do
  local entry, delay = ARGV[at], tonumber(ARGV[at + 2])
  local result = -1
  if call('XPENDING', KEYS[1], ARGV[1], entry, entry, 1, ARGV[2])[1] then
    local data = ARGV[at + 3] .. now_text
    if ARGV[at + 4] ~= '' then
      data = data .. ARGV[at + 4] .. now_text
    end
    data = data .. ARGV[at + 5]
    if delay < 0 then
      call('XADD', KEYS[5], '*', unpack(cmsgpack.unpack(data), 3))
      dead = dead + 1
      result = 0
    else
      local member, number = ARGV[at + 1], 1
      while call('HSETNX', KEYS[4], member, data) == 0 do
        number = number + 1
        member = ARGV[at + 1] .. '@' .. number
      end
      result = now + delay
      call('ZADD', KEYS[3], result, member)
    end
    done[#done + 1] = entry
  end
  results[#results + 1] = result
end
if rings then
  -- A hint only, and not everybody may publish.
  redis.pcall('PUBLISH', ARGV[6], ARGV[5])
end
if done[1] then
  call('XACK', KEYS[1], ARGV[1], unpack(done))
  if ARGV[3] == '1' then
    call('XDEL', KEYS[1], unpack(done))
  end
  redis.pcall('HINCRBY', KEYS[2], 'failed', #done)
  if dead > 0 then
    redis.pcall('HINCRBY', KEYS[2], 'dead', dead)
  end
end
if ARGV[4] ~= '' then
  redis.pcall('HSET', KEYS[2], 'position', ARGV[4])
end
return results
