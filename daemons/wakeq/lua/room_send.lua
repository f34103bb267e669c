-- room_send: put a message in line, to be delivered to all clients of the room.
--
-- KEYS[1] to KEYS[10], ARGV[1] to ARGV[4]: as room.lua says
-- ARGV[5]  data
-- ARGV[6]  producer
-- ARGV[7]  priority  lower first; equal ones in the order of sending
-- ARGV[8]  limit     of messages in line; 0: none
--
-- Returns {id, length}: how many wait after it; the id is '' if the line is full.
--
-- Atomic because the order of sending is that of the ids, and an idle room delivers at once.
local length = call('ZCARD', queue)
if ARGV[8] ~= '0' and length >= tonumber(ARGV[8]) then
  call('HINCRBY', state, 'refused', 1)
  finish()
  return {'', length}
end
local id = next_id()
call('ZADD', queue, ARGV[7], message_of(id, ARGV[6], ARGV[5]))
call('HINCRBY', state, 'sent', 1)
unsettled = true
finish()
return {id, call('ZCARD', queue)}
