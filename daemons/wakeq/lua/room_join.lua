-- room_join: make somebody a client of a room, or hand a client to another worker.
--
-- KEYS[1] to KEYS[10], ARGV[1] to ARGV[4]: as room.lua says
-- ARGV[5]  client
-- ARGV[6]  worker    who delivers to it
-- ARGV[7]  mode      sync: it is waited for; async: it is not; observer: nor is anything sent for it
-- ARGV[8]  timeout   how long it may be silent, ms, 1..
-- ARGV[9]  drop      1: what waits is dropped when the last subscriber leaves, 0: it is kept
--
-- Returns {resumed, version, logged, round}: resumed is 1 for who is a client already; version that
-- of the worker's list of clients; then what it is after: later numbers in the log and later rounds
-- are for it.
--
-- Atomic because who joins is waited for in all later rounds, and in none that has begun.
local client, worker, mode = ARGV[5], ARGV[6], ARGV[7]
local resumed, version, done = 0, nil, 0
local seen = call('HMGET', state, 'logged', 'round')
local logged, round = tonumber(seen[1] or '0'), tonumber(seen[2] or '0')
local joined = now
local before = call('HGET', members, client)
if before then
  local old = cmsgpack.unpack(before)
  if old[2] == mode then
    resumed, logged, round, joined = 1, old[3], old[4], old[5]
    done = worker_of(old[1])[3]
    if old[1] ~= worker then
      logged = math.max(logged, done)
      for _, set in ipairs({sync, waiting}) do
        if call('SREM', set, seat(old[1], client)) == 1 then
          call('SADD', set, seat(worker, client))
        end
      end
      count(old[1], -1, mode)
      version = count(worker, 1, mode, logged)
      news = true
    end
  else
    remove(client, before)
    before = nil
  end
end
if not before then
  if mode == 'sync' then
    call('SADD', sync, seat(worker, client))
  else
    call('HINCRBY', state, 'listeners', 1)
    if mode == 'async' then
      call('HINCRBY', state, 'asyncs', 1)
    end
  end
  version = count(worker, 1, mode)
  news, unsettled = true, true
end
call('HSET', members, client,
  cmsgpack.pack({worker, mode, logged, round, joined, tonumber(ARGV[8])}))
call('ZADD', clients, now + ARGV[8], client)
call('ZREM', ejected, client)
if mode ~= 'observer' then
  if ARGV[9] == '1' then
    call('HSET', state, 'drop', 1)
  else
    call('HDEL', state, 'drop')
  end
end
call('HSET', state, 'used', now)
call('PERSIST', state)
finish()
return {resumed, version or worker_of(worker)[2], math.max(logged, done), round}
