-- room_acknowledge: take clients' acknowledgements of a message; the last one ends the round.
--
-- KEYS[1] to KEYS[10], ARGV[1] to ARGV[4]: as room.lua says
-- ARGV[5]  timeout   the clients may be silent for so long again, ms; 0: no longer than before
-- ARGV[6]  id        the message
-- ARGV[7..]          the clients, 1..1000
--
-- Returns {failed, version, round, logged, timeouts, message, now}:
--   failed   {client, why, client, why ...}: not-subscribed, timed-out, taken-over; not-outstanding:
--            the message is not, or not yet; doubled; not-waited-for: who is async or an observer,
--            or joined when the round had begun
--   version  that of the caller's list of clients, 0 if it has none
--   round, logged, timeouts   as room_ping.lua says
--   message  the one that is outstanding, if this call made it so and a worker calls
--   now      microseconds
--
-- Atomic because only acknowledgements of the outstanding message, one of each client, end a round.
local seen = call('HMGET', state, 'id', 'round', 'acknowledged', 'listeners', 'logged', 'timeouts')
local names = {unpack(ARGV, 7)}
local failed, seats, packed, waits, alive = {}, {}, nil, {}, {}
if caller == '' then
  packed = call('HMGET', members, unpack(names))
end
for i, client in ipairs(names) do
  local worker = caller
  if packed and packed[i] then
    worker = cmsgpack.unpack(packed[i])[1]
  end
  seats[i] = seat(worker, client)
end
if seen[1] == ARGV[6] then
  waits = call('SMISMEMBER', waiting, unpack(seats))
end

local function why(client)
  local known = call('HGET', members, client)
  local reason = why_not(client, known)
  if reason then
    return reason
  end
  known = cmsgpack.unpack(known)
  if known[2] ~= 'sync' then
    return 'not-waited-for'
  elseif seen[1] ~= ARGV[6] then
    return 'not-outstanding'
  end
  return known[4] >= tonumber(seen[2]) and 'not-waited-for' or 'doubled'
end

local taken, once = 0, {}
for i, client in ipairs(names) do
  local reason = nil
  if waits[i] == 1 and not once[client] then
    once[client] = true
    taken = taken + 1
  else
    reason = why(client)
    failed[#failed + 1] = client
    failed[#failed + 1] = reason
  end
  if ARGV[5] ~= '0' and reason ~= 'timed-out' and reason ~= 'taken-over' then
    alive[#alive + 1] = now + ARGV[5]
    alive[#alive + 1] = client
  end
end
if #alive > 0 then
  call('ZADD', clients, 'XX', unpack(alive))
end
local round, message = tonumber(seen[2] or '0'), false
if taken > 0 then
  local acknowledged = whole((seen[3] or 0) + taken)
  call('SREM', waiting, unpack(seats))
  if call('EXISTS', waiting) == 1 then
    call('HSET', state, 'acknowledged', acknowledged)
  else
    unsettled = false
    local begun, next_message = release(round, acknowledged, seen[4])
    if begun then
      round, message = begun, next_message
    else
      no_round()
      call('HSET', state, 'acknowledged', acknowledged)
    end
  end
end
local known = finish(true)
if caller == '' then
  return {failed, 0, round, 0, 0, false, now_us}
end
if news then
  seen = call('HMGET', state, 'id', 'round', 'acknowledged', 'listeners', 'logged', 'timeouts')
  if tonumber(seen[2] or '0') ~= round then
    round, message = tonumber(seen[2] or '0'), seen[1] and call('HGET', state, 'message')
  end
end
return {failed, known and known[2] or 0, round, tonumber(seen[5] or '0'),
  tonumber(seen[6] or '0'), known and message or false, now_us}
