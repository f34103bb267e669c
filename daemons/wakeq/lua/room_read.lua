-- room_read: give a worker what is new in the log of a room.
--
-- KEYS[1] to KEYS[10], ARGV[1] to ARGV[4]: as room.lua says
-- ARGV[5]  after     the number that it has read up to; '': where it, or who had the room before,
--                    was done
-- ARGV[6]  done      the number up to which all is done, '' if that is not known
-- ARGV[7]  listed    the version of the list of clients up to which it knows all who have joined
--
-- Returns {logged, now, after, entries, version, members, done}:
--   logged   the last number there is, -1 if the worker does not have the room; then nothing
--            follows that is not 0 or empty
--   now      microseconds
--   after    the number that the entries come after
--   entries  {number, round, message ...}, at most 100, and a megabyte or one message
--   version  that of the list of clients
--   members  {client, mode, number in the log, round ...}, if somebody has joined since that listed
--   done     up to which number the worker is done
--
-- Atomic because whoever is there is to be known with what there is to read for him; and because
-- what all workers have done is removed, and nothing else but what is too old.
local known = caller ~= '' and worker_of(caller)
local is_here = known and known[4] == process
local after, done, listed = tonumber(ARGV[5]), tonumber(ARGV[6]) or -1, tonumber(ARGV[7])
if (after or 0) > tonumber(call('HGET', state, 'logged') or '0') then
  -- The server that it has read this from is gone, and with it the last numbers: the same ones are
  -- given again, to others.
  after, done = nil, -1
end
if is_here and known[8] == 0 then
  known[8] = 1
  call('HSET', workers, caller, cmsgpack.pack(known))
end
-- Who does not know of somebody who was behind does not know what is done.
if is_here and done > known[3] and listed >= (known[10] or known[2]) then
  known[3] = done
  call('HSET', workers, caller, cmsgpack.pack(known))
  local least = known[3]
  for _, packed in ipairs(call('HVALS', workers)) do
    least = math.min(least, cmsgpack.unpack(packed)[3])
  end
  call('XTRIM', log, 'MINID', whole(least + 1) .. '-0')
end
-- Who only listens is given more of what waits as it reads on.
unsettled = true
finish()
if not is_here then
  return {-1, now_us, 0, {}, 0, {}, 0}
end
after = after or known[3]
local entries, bytes, from = {}, 0, after
while #entries < 300 and bytes < 1048576 do
  local some = call('XRANGE', log, whole(from + 1) .. '-0', '+', 'COUNT', bytes == 0 and 1 or 10)
  for _, entry in ipairs(some) do
    from = tonumber(string.match(entry[1], '^%d+'))
    entries[#entries + 1] = from
    entries[#entries + 1] = tonumber(entry[2][2])
    entries[#entries + 1] = entry[2][4]
    bytes = bytes + #entry[2][4]
  end
  if #some == 0 then
    break
  end
end
local logged = tonumber(call('HGET', state, 'logged') or '0')
local missed = (entries[1] or logged + 1) - math.max(after, known[3]) - 1
if missed > 0 then
  call('HINCRBY', state, 'missed', missed)
end
-- A version that is not there yet was known from a server that is gone.
local is_listed = (known[9] or known[2]) <= listed and listed <= known[2]
return {logged, now_us, after, entries, known[2], is_listed and {} or clients_of(caller), known[3]}
