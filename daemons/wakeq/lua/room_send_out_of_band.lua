-- room_send_out_of_band: deliver a message to all clients of the room now, whatever they wait for.
--
-- KEYS[1] to KEYS[10], ARGV[1] to ARGV[4]: as room.lua says
-- ARGV[5]  data
-- ARGV[6]  producer
--
-- Returns {id, count, worker}: how many clients there are. The id is '' if it was refused, because
-- somebody who is waited for (sync clients; async ones where there are no others) would miss what
-- was sent before: then count is how much a worker has not read, and worker is which.
--
-- Atomic because all of them, and nobody who joins later, are to have it.
if call('XLEN', log) >= LOG_MOST then
  local behind, slowest = unread(call('EXISTS', sync) == 1 and 'sync' or 'async', 1)
  if behind >= LOG_MOST then
    call('HINCRBY', state, 'refused', 1)
    finish()
    return {'', behind, slowest}
  end
end
local id = next_id()
local there = call('ZCARD', clients)
call('HINCRBY', state, 'oob', 1)
if there > 0 then
  note(message_of(id, ARGV[6], ARGV[5]), 0)
  news = true
else
  unsettled = true
end
finish()
return {id, there, ''}
