-- deliver: move the delayed messages of one stream that are due to where they are delivered from.
--
-- KEYS[1]  S                         STREAM  where delayed publishes go
-- KEYS[2]  wakeq:{S}:delayed         ZSET    when each delayed message is due, ms
-- KEYS[3]  wakeq:{S}:delayed:data    HASH    the delayed messages, packed as {group, first id,
--                                            field, value ...}; group '': it goes to S
-- KEYS[4]  wakeq:{S}:delayed:repair  ZSET    due retries that wait for a repair, and when each may
--                                            be handed out, ms
-- ARGV[1]  prefix   wakeq:{S}:retry:, with a group behind it the STREAM where its retries go
-- ARGV[2]  batch    at most so many, 1..1000; fewer, when they are large
-- ARGV[3]  put_off  ms that a message is put off which cannot be delivered, 1..
-- ARGV[4]  repair   1: retries wait for a repair, 0: they are delivered
-- ARGV[5]  tell     1: name what was moved, 0: count it
--
-- Returns an array:
--   1  now       microseconds
--   2  next      when the next message is due, ms, or ''; not after now if some were left
--   3  repair    when the next one may be handed out for a repair, ms, or ''
--   4  delayed   how many messages there still are
--   5  strays    how many more of them are in the hash than in the sets, 0 if all is well
--   6  moved     how many were moved to a stream
--   7  troubles  id, why, id, why ...: what was put off, or dropped because nothing is stored
--   8  told      first id, group, new id, and so on
--
-- The retry streams are computed here, because the groups are in the messages; they are in the
-- slot of the prefix that is passed.
--
-- Atomic because a message must be in exactly one of the delayed ones and a stream. Redis that is
-- out of memory refuses; what was moved before that stays moved.
local bytes_most = 1024 * 1024
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local room, bytes, moved = tonumber(ARGV[2]), 0, 0
local troubles, told = {}, {}
-- What is wrong with one message or its stream; all else is wrong with the server.
local own_faults = {WRONGTYPE = true, NOPERM = true, ERR = true}

local function note(member, why)
  troubles[#troubles + 1] = member
  troubles[#troubles + 1] = why
end

-- Move one message; returns an error that holds for all.
local function move(set, member, due)
  local data = redis.call('HGET', KEYS[3], member)
  if not data then
    redis.call('ZREM', set, member)
    note(member, 'dropped: nothing is stored under this id')
    return
  end
  bytes = bytes + #data
  local readable, items = pcall(cmsgpack.unpack, data)
  local why
  if not readable or type(items) ~= 'table' or type(items[1]) ~= 'string'
      or type(items[2]) ~= 'string' or #items < 4 or #items % 2 == 1 or #items > 7990 then
    why = 'what is stored is no delayed message'
  elseif items[1] ~= '' and ARGV[4] == '1' then
    redis.call('ZADD', KEYS[4], due, member)
    redis.call('ZREM', set, member)
    return
  else
    local target = items[1] == '' and KEYS[1] or ARGV[1] .. items[1]
    local entry = redis.pcall('XADD', target, '*', unpack(items, 3))
    if type(entry) == 'string' then
      redis.call('ZREM', set, member)
      redis.call('HDEL', KEYS[3], member)
      moved = moved + 1
      if ARGV[5] == '1' then
        told[#told + 1] = items[2]
        told[#told + 1] = items[1]
        told[#told + 1] = entry
      end
      return
    end
    if not own_faults[string.match(entry.err, '^%S+')] then
      return entry.err
    end
    why = target .. ': ' .. entry.err
  end
  redis.call('ZADD', set, now + tonumber(ARGV[3]), member)
  note(member, why)
end

-- Without a repair, what waited for one is due as well.
local sets = ARGV[4] == '1' and {KEYS[2]} or {KEYS[4], KEYS[2]}
for _, set in ipairs(sets) do
  local due = redis.call('ZRANGEBYSCORE', set, '-inf', now, 'WITHSCORES', 'LIMIT', 0, room)
  for i = 1, #due, 2 do
    if bytes >= bytes_most then
      break
    end
    local err = move(set, due[i], due[i + 1])
    if err then
      return redis.error_reply(err)
    end
    room = room - 1
  end
end
local count = redis.call('ZCARD', KEYS[2]) + redis.call('ZCARD', KEYS[4])
return {
  now_us,
  redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] or '',
  redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2] or '',
  count,
  redis.call('HLEN', KEYS[3]) - count,
  moved,
  troubles,
  told,
}
