-- room_leave: let clients leave a room.
--
-- KEYS[1] to KEYS[10], ARGV[1] to ARGV[4]: as room.lua says
-- ARGV[5..]  the clients, 1..1000
--
-- Returns {client, why, client, why ...} of those that could not: not-subscribed, timed-out,
-- taken-over.
--
-- Atomic because a client that leaves may be the last one that a round waits for.
local failed = {}
for i = 5, #ARGV do
  local client = ARGV[i]
  local packed = call('HGET', members, client)
  local why = why_not(client, packed)
  if why then
    failed[#failed + 1] = client
    failed[#failed + 1] = why
  else
    remove(client, packed)
  end
end
finish()
return failed
