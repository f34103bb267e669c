-- room: put ahead of the steps of a room (room_*.lua): its keys, and what the steps share.
--
-- KEYS[1]   wakeq:room:{R}:state     HASH    seq: the last id given; round: how many have begun;
--                                            id, message, priority, released, before: the message
--                                            that is outstanding, while there is one; logged: the
--                                            last number in the log; listeners, asyncs: how many
--                                            clients are not sync, and async; drop; used: when
--                                            somebody has joined last, ms; the counters
-- KEYS[2]   wakeq:room:{R}:queue     ZSET    messages that wait -> priority
-- KEYS[3]   wakeq:room:{R}:clients   ZSET    client -> when it times out, ms
-- KEYS[4]   wakeq:room:{R}:members   HASH    client -> packed {worker, mode, number in the log and
--                                            round at its joining, joined ms, timeout ms}
-- KEYS[5]   wakeq:room:{R}:sync      SET     seats (worker NUL client) that are waited for
-- KEYS[6]   wakeq:room:{R}:waiting   SET     those of them that have not acknowledged
-- KEYS[7]   wakeq:room:{R}:workers   HASH    worker -> packed {how many clients, version of that
--                                            list, position in the log, process, its lease's end,
--                                            how many sync clients, how many async ones, 1
--                                            if it has ever read the log, else 0, versions at which
--                                            somebody has joined last, and was behind the position}
-- KEYS[8]   wakeq:room:{R}:log       STREAM  out-of-band messages, and all while not only sync
--                                            clients are there; ids are numbers, N-0; the last
--                                            thousand of what not all workers have done
-- KEYS[9]   wakeq:room:{R}:ejected   ZSET    client -> when it was timed out, ms; for an hour
-- KEYS[10]  wakeq:room:{R}:timeouts  LIST    clients that were timed out, to be reported once
-- ARGV[1]   room      R, as its users write it
-- ARGV[2]   bell      wakeq:worker:, with a worker behind it the CHANNEL that it listens to
-- ARGV[3]   worker    who calls, '': no worker
-- ARGV[4]   process   which process of it, '': it has one alone
-- ARGV[5..]           the step's own
--
-- Returns nothing; the step does. A message is its id (16 digits, microseconds), the length of the
-- producer (5 digits), the producer, the data.
--
-- Atomic because it is one script with the one that it stands ahead of.
local call = redis.call
local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local state, queue, clients, members, sync = unpack(KEYS, 1, 5)
local waiting, workers, log, ejected, timeouts = unpack(KEYS, 6, 10)
local room, bell, caller, process = unpack(ARGV, 1, 4)
-- Something changed that workers want to know of; something may have ended the round.
local news, unsettled = false, false
-- What a worker may have before it in the log, and how much of that what waits in line may take.
local LOG_MOST, LINE_MOST = 1000, 900
local COUNT_OF = {sync = 6, async = 7}  -- where in a packed worker
local left = {}  -- workers whose last client has gone: they are told once more

local function whole(number)
  return string.format('%d', number)
end

local function seat(worker, client)
  return worker .. '\0' .. client
end

local function worker_of(name)
  local packed = call('HGET', workers, name)
  return packed and cmsgpack.unpack(packed)
end

-- Remember how a worker's list of clients changed, and return its new version; who comes from
-- another worker may be behind the position.
local function count(name, change, mode, position)
  local known = worker_of(name)
    or {0, now_us, position or tonumber(call('HGET', state, 'logged') or '0'), '', 0, 0, 0, 0}
  known[1], known[2] = known[1] + change, known[2] + 1
  known[9], known[10] = change > 0 and known[2] or known[9] or known[2], known[10] or known[2]
  if position and position < known[3] then
    known[3], known[10] = position, known[2]
  end
  local place = COUNT_OF[mode]
  if place then
    known[place] = known[place] + change
  end
  if known[1] > 0 then
    call('HSET', workers, name, cmsgpack.pack(known))
    left[name] = nil
  else
    call('HDEL', workers, name)
    left[name] = known
  end
  return known[2]
end

-- Return {client, mode, number in the log, round ...} of a worker.
local function clients_of(name)
  local found, all = {}, call('HGETALL', members)
  for i = 1, #all, 2 do
    local member = cmsgpack.unpack(all[i + 1])
    if member[1] == name then
      found[#found + 1] = all[i]
      found[#found + 1] = member[2]
      found[#found + 1] = member[3]
      found[#found + 1] = member[4]
    end
  end
  return found
end

-- Let a client be gone; what it did not acknowledge is no longer waited for.
local function remove(client, packed)
  local worker, mode = unpack(cmsgpack.unpack(packed), 1, 2)
  call('HDEL', members, client)
  call('ZREM', clients, client)
  if mode == 'sync' then
    call('SREM', sync, seat(worker, client))
    call('SREM', waiting, seat(worker, client))
  else
    call('HINCRBY', state, 'listeners', -1)
    if mode == 'async' then
      call('HINCRBY', state, 'asyncs', -1)
    end
  end
  count(worker, -1, mode)
  news, unsettled = true, true
end

-- Let those be gone that are overdue, a hundred at a time.
local function reap()
  local late = call('ZRANGEBYSCORE', clients, '-inf', now, 'LIMIT', 0, 100)
  if #late == 0 then
    return
  end
  for _, client in ipairs(late) do
    local packed = call('HGET', members, client)
    if packed then
      remove(client, packed)
    else
      call('ZREM', clients, client)
    end
    call('ZADD', ejected, now, client)
    call('RPUSH', timeouts, client)
  end
  call('HINCRBY', state, 'timeouts', #late)
  call('ZREMRANGEBYSCORE', ejected, '-inf', now - 3600000)
  call('PEXPIRE', ejected, 3600000)
  call('LTRIM', timeouts, -1000, -1)
  call('PEXPIRE', timeouts, 3600000)
end

-- Write to the log; round 0 is out-of-band.
local function note(message, round)
  local id = whole(call('HINCRBY', state, 'logged', 1)) .. '-0'
  local added = redis.pcall('XADD', log, 'MAXLEN', '~', LOG_MOST, id, 'r', round, 'm', message)
  if added.err then
    -- Only the state was lost; then nobody knows what the numbers in the log mean.
    call('DEL', log)
    call('XADD', log, id, 'r', round, 'm', message)
  end
end

-- Return how many numbers of the log that worker has before it which is furthest behind of those
-- with clients of a mode, and its name. What has never read the log may be no process at all, but
-- somebody who asks by himself what is outstanding.
local function unread(mode, has_read)
  local logged, most, slowest = tonumber(call('HGET', state, 'logged') or '0'), 0, ''
  local all = call('HGETALL', workers)
  for i = 1, #all, 2 do
    local known = cmsgpack.unpack(all[i + 1])
    if known[COUNT_OF[mode]] > 0 and known[8] >= has_read and logged - known[3] > most then
      most, slowest = logged - known[3], all[i]
    end
  end
  return most, slowest
end

-- Tell whether something is a message; what somebody else has put into the line may be anything.
local function is_message(raw)
  local size = #raw >= 21 and not string.find(string.sub(raw, 1, 21), '%D')
    and tonumber(string.sub(raw, 17, 21))
  return size and #raw >= 21 + size
end

-- Take messages off the head of the line, at most so many and as few as one; what is none is
-- dropped and counted, a thousand of those at a time. Returns {message, priority ...}.
local function pop(most)
  local taken, invalid = {}, 0
  while #taken == 0 and invalid < 1000 do
    local some = call('ZPOPMIN', queue, most)
    for i = 1, #some, 2 do
      if is_message(some[i]) then
        taken[#taken + 1] = some[i]
        taken[#taken + 1] = some[i + 1]
      else
        invalid = invalid + 1
      end
    end
    if #some == 0 then
      break
    end
  end
  if invalid > 0 then
    call('HINCRBY', state, 'invalid', invalid)
  end
  return taken
end

-- Begin the next round, if anything waits, and return the round and its message. It is known how
-- many rounds and acknowledgements there were, and that sync clients are there.
local function release(rounds, acknowledged, listeners)
  local head = pop(1)
  if not head[1] then
    return
  end
  local round = whole(rounds + 1)
  call('HSET', state, 'id', string.sub(head[1], 1, 16), 'message', head[1], 'priority', head[2],
    'round', round, 'released', now, 'acknowledged', acknowledged, 'before', acknowledged)
  call('SUNIONSTORE', waiting, sync)
  if tonumber(listeners or '0') > 0 then
    note(head[1], round)
  end
  news = true
  return tonumber(round), head[1]
end

local function no_round()
  call('HDEL', state, 'id', 'message', 'priority', 'released', 'before')
end

-- Nobody is there to wait for: give it to those who only listen, a hundred at a time and no more
-- than they can read before it is removed, or drop it. Observers hold up nobody.
local function unattended()
  local seen = call('HMGET', state, 'asyncs', 'drop')
  if tonumber(seen[1] or '0') > 0 then
    local fits = call('EXISTS', queue) == 1 and math.min(100, LINE_MOST - unread('async', 0)) or 0
    local some = fits > 0 and pop(fits) or {}
    for i = 1, #some, 2 do
      note(some[i], call('HINCRBY', state, 'round', 1))
      news = true
    end
  elseif seen[2] and call('EXISTS', queue) == 1 then
    call('HINCRBY', state, 'dropped', call('ZCARD', queue))
    call('DEL', queue)
  end
  if call('EXISTS', clients) == 0 then
    call('DEL', log)
    if call('EXISTS', queue) == 0 then
      call('PEXPIRE', state, 86400000)
    end
  end
end

-- End the round if nobody is waited for any more, and begin the next one if somebody is there.
local function settle()
  local seen = call('HMGET', state, 'id', 'before', 'acknowledged', 'round', 'listeners')
  local acknowledged = seen[3] or '0'
  if seen[1] then
    if call('EXISTS', waiting) == 1 then
      return
    end
    if seen[2] == acknowledged then
      -- Nobody has acknowledged it, all have gone: it waits again, where it did.
      local back = call('HMGET', state, 'priority', 'message')
      call('ZADD', queue, back[1], back[2])
    end
  end
  local attended = call('EXISTS', sync) == 1
  if attended and release(tonumber(seen[4] or '0'), acknowledged, seen[5]) then
    return
  end
  if seen[1] then
    no_round()
  end
  if not attended then
    unattended()
  end
end

-- Bring all to rest, and tell the workers: round, logged, timeouts, version of the worker's list,
-- the process that has the room or '-', and R; not the caller, if it has that from the reply.
-- Returns what is known of the caller as a worker.
local function finish(told)
  if unsettled then
    settle()
  end
  if not news then
    return told and caller ~= '' and worker_of(caller)
  end
  local figures, mine
  local function tell(name, known)
    if name == caller then
      mine = known
    end
    if not told or name ~= caller or (known[4] ~= process and known[4] ~= '') then
      figures = figures or call('HMGET', state, 'round', 'logged', 'timeouts')
      call('PUBLISH', bell .. name, (figures[1] or '0') .. ' ' .. (figures[2] or '0') .. ' '
        .. (figures[3] or '0') .. ' ' .. whole(known[2]) .. ' '
        .. (known[4] == '' and '-' or known[4]) .. ' ' .. room)
    end
  end
  for name, known in pairs(left) do
    tell(name, known)
  end
  mine = nil
  local all = call('HGETALL', workers)
  for i = 1, #all, 2 do
    tell(all[i], cmsgpack.unpack(all[i + 1]))
  end
  return mine
end

-- Tell why somebody cannot do what only clients of the room can, if so.
local function why_not(client, packed)
  if not packed then
    return call('ZSCORE', ejected, client) and 'timed-out' or 'not-subscribed'
  end
  if caller ~= '' and cmsgpack.unpack(packed)[1] ~= caller then
    return 'taken-over'
  end
end

local function next_id()
  local id = whole(math.max((call('HGET', state, 'seq') or 0) + 1, now_us))
  call('HSET', state, 'seq', id)
  call('PERSIST', state)
  return id
end

local function message_of(id, producer, data)
  return id .. string.format('%05d', #producer) .. producer .. data
end

reap()
