-- room_send_out_of_band: deliver a message to all clients of the room now, whatever they wait for.
--
-- KEYS[1] to KEYS[10], ARGV[1] to ARGV[4]: as room.lua says
-- ARGV[5]  data
-- ARGV[6]  producer
--
-- Returns {id, count}: how many clients there are.
--
-- Atomic because all of them, and nobody who joins later, are to have it.
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
return {id, there}
