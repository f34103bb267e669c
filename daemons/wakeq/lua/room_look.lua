-- room_look: tell a worker what there is for it in a room: its clients, and the message that they
-- have not acknowledged.
--
-- KEYS[1] to KEYS[10], ARGV[1] to ARGV[4]: as room.lua says
-- ARGV[5]  lease     of the process, ms
-- ARGV[6]  version   of the list of clients that it knows
-- ARGV[7]  reports   1: it reports clients that were timed out, 0: it does not
-- ARGV[8..]          the sync ones of these clients
--
-- Returns {elsewhere, version, members, round, message, waiting, logged, timeouts, timed_out,
-- overdue, now, done}:
--   elsewhere  ms that another process of the worker has the room for; 0: nobody else has; then
--              nothing follows that is not 0 or empty
--   version    that of the list of clients, 0 if it has none
--   members    {client, mode, number in the log, round ...}, if the version is another one
--   round      how many have begun
--   message    the one that is outstanding, if some of the worker's clients have not acknowledged it
--   waiting    which these are
--   logged     the last number in the log
--   timeouts   how many clients were timed out
--   timed_out  clients to report, at most 100
--   overdue    in how many ms the first client may be timed out that a round may wait for, -1: none
--   now        microseconds
--   done       up to which number in the log the worker was done
--
-- Atomic because a round is to be seen with those that it waits for; and one process delivers.
unsettled = true
local known = finish(true)
local reports = {}
if ARGV[7] == '1' then
  reports = call('LPOP', timeouts, 100) or {}
end
local seen = call('HMGET', state, 'round', 'logged', 'timeouts', 'id')
local round, logged = tonumber(seen[1] or '0'), tonumber(seen[2] or '0')
local late = tonumber(seen[3] or '0')
if not known then
  return {0, 0, {}, round, false, {}, logged, late, reports, -1, now_us, 0}
end
if process ~= '' then
  if known[4] ~= process and known[4] ~= '' and known[5] > now then
    return {known[5] - now, 0, {}, round, false, {}, logged, late, reports, -1, now_us, 0}
  end
  known[4], known[5] = process, now + ARGV[5]
  call('HSET', workers, caller, cmsgpack.pack(known))
end
local list, names, message, mine, overdue = {}, {}, false, {}, -1
if ARGV[6] == whole(known[2]) then
  for i = 8, #ARGV do  -- there may be more of them than fit on Lua's stack
    names[#names + 1] = ARGV[i]
  end
else
  list = clients_of(caller)
  for i = 1, #list, 4 do
    names[#names + 1] = list[i]
  end
end
if seen[4] then
  for i = 1, #names, 1000 do
    local seats = {}
    for j = i, math.min(i + 999, #names) do
      seats[#seats + 1] = seat(caller, names[j])
    end
    for j, waits in ipairs(call('SMISMEMBER', waiting, unpack(seats))) do
      if waits == 1 then
        mine[#mine + 1] = names[i + j - 1]
      end
    end
  end
  message = #mine > 0 and call('HGET', state, 'message')
  overdue = math.max(call('ZRANGE', clients, 0, 0, 'WITHSCORES')[2] - now, 0)
end
return {0, known[2], list, round, message, mine, logged, late, reports, overdue, now_us, known[3]}
