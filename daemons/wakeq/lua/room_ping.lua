-- room_ping: hear that clients are alive.
--
-- KEYS[1] to KEYS[10], ARGV[1] to ARGV[4]: as room.lua says
-- ARGV[5]  timeout   they may be silent for so long again, ms; 0: as long as before
-- ARGV[6]  lease     of the process, which is given again if it has it, ms; 0: it is given up
-- ARGV[7..]          the clients, at most 1000
--
-- Returns {failed, version, round, logged, timeouts}:
--   failed    {client, why, client, why ...}: not-subscribed, timed-out, taken-over
--   version   that of the caller's list of clients, 0 if it has none; -1: another process has it
--   round     how many have begun
--   logged    the last number in the log
--   timeouts  how many clients were timed out
--
-- Atomic because a client is alive or was timed out, and a ping that comes late does not count.
local failed, alive = {}, {}
for i = 7, #ARGV do
  local client = ARGV[i]
  local packed = call('HGET', members, client)
  local why = why_not(client, packed)
  if why then
    failed[#failed + 1] = client
    failed[#failed + 1] = why
  else
    alive[#alive + 1] = now + (ARGV[5] == '0' and cmsgpack.unpack(packed)[6] or ARGV[5])
    alive[#alive + 1] = client
  end
end
if #alive > 0 then
  call('ZADD', clients, 'XX', unpack(alive))
end
-- A step before this one may have left something to do: each does no more than so much.
unsettled = true
local known, version = caller ~= '' and worker_of(caller), 0
if known and process ~= '' and known[4] == process then
  -- A lease of nothing is given up, and the others are told.
  known[4], known[5] = ARGV[6] == '0' and '' or process, now + ARGV[6]
  call('HSET', workers, caller, cmsgpack.pack(known))
  news = news or ARGV[6] == '0'
end
finish(ARGV[6] ~= '0')
known = caller ~= '' and worker_of(caller)
if known then
  version = process ~= known[4] and known[4] ~= '' and known[5] > now and -1 or known[2]
end
local seen = call('HMGET', state, 'round', 'logged', 'timeouts')
return {failed, version, tonumber(seen[1] or '0'), tonumber(seen[2] or '0'),
  tonumber(seen[3] or '0')}
