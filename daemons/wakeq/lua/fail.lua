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
-- ARGV[7..]           for each message: its id in KEYS[1]; its first id; the delay in ms, or -1
--                     for the dead letters; how many items follow; field, value, field,
--                     value ..., 1 to 3990 fields
--
-- Adds the fields wakeq.failed_at and, at the first failure, wakeq.first_failed_at, in ms.
-- A delayed message is packed as {group, first id, field, value ...} (cmsgpack); it goes to the
-- group's retry stream when it is due.
--
-- Returns for each message when it is due, in ms; 0: it is a dead letter; -1: the consumer did
-- not have it (any more), and nothing was done.
--
-- Atomic because a message must be in exactly one place, also when the caller lost the reply
-- and calls again. Redis that is out of memory refuses before anything has changed.
redis.call('ZCARD', KEYS[3]) -- an error here, if a key is something else, changes nothing
redis.call('HLEN', KEYS[4])
redis.call('XLEN', KEYS[5])
local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%d', now)
local results = {}
local failed, dead = 0, 0
local done = {}
local first_due
local at = 7
while at <= #ARGV do
  local entry, first = ARGV[at], ARGV[at + 1]
  local delay, count = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local from, to = at + 4, at + 3 + count
  at = to + 1
  local result = -1
  if call('XPENDING', KEYS[1], ARGV[1], entry, entry, 1, ARGV[2])[1] then
    local is_first = true
    for i = from, to, 2 do
      if ARGV[i] == 'wakeq.first_failed_at' then
        is_first = false
        break
      elseif string.sub(ARGV[i], 1, 6) ~= 'wakeq.' then
        break
      end
    end
    -- Where they go and what they are, put together at once: that is most of what this costs.
    local items
    if is_first then
      items = {ARGV[1], first, 'wakeq.failed_at', now_text, 'wakeq.first_failed_at', now_text,
        unpack(ARGV, from, to)}
    else
      items = {ARGV[1], first, 'wakeq.failed_at', now_text, unpack(ARGV, from, to)}
    end
    if delay < 0 then
      call('XADD', KEYS[5], '*', unpack(items, 3))
      dead = dead + 1
      result = 0
    else
      local member = first .. '@' .. ARGV[1]
      local packed = cmsgpack.pack(items)
      local number = 1
      while call('HSETNX', KEYS[4], member, packed) == 0 do
        number = number + 1
        member = first .. '@' .. ARGV[1] .. '@' .. number
      end
      result = now + delay
      call('ZADD', KEYS[3], result, member)
      first_due = math.min(first_due or result, result)
    end
    failed = failed + 1
    done[failed] = entry
  end
  results[#results + 1] = result
end
if first_due and tonumber(call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]) == first_due then
  -- A hint only, and not everybody may publish. By the time, for several may be due at it.
  redis.pcall('PUBLISH', ARGV[6], ARGV[5])
end
if failed > 0 then
  call('XACK', KEYS[1], ARGV[1], unpack(done))
  if ARGV[3] == '1' then
    call('XDEL', KEYS[1], unpack(done))
  end
  redis.pcall('HINCRBY', KEYS[2], 'failed', failed)
  if dead > 0 then
    redis.pcall('HINCRBY', KEYS[2], 'dead', dead)
  end
end
if ARGV[4] ~= '' then
  redis.pcall('HSET', KEYS[2], 'position', ARGV[4])
end
return results
