-- room_state: tell what is going on in a room.
--
-- KEYS[1] to KEYS[10], ARGV[1] to ARGV[4]: as room.lua says
-- ARGV[5]  all   1: name its clients, 0: count them
--
-- Returns {now, figures, message, backlog, clients, sync, waiting, oldest, members}:
--   now      microseconds
--   figures  name, value, name, value ... of the state, without the message
--   message  the one that is outstanding, or ''
--   backlog  how many messages wait
--   clients, sync, waiting   how many there are, are waited for, have not acknowledged
--   oldest   the id of the message that has waited longest, or ''
--   members  {client, worker, mode, joined ms, timed out at ms, timeout ms, 1 if it has not
--            acknowledged ...}
--
-- Atomic because the figures are to belong to one moment.
unsettled = true
finish()
-- The oldest of each priority is the first of it; what has more than a hundred of them is not
-- looked through.
local oldest, after, looks = '', '-inf', 0
while looks < 100 do
  local head = call('ZRANGE', queue, after, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
  if not head[1] then
    break
  end
  local id = string.sub(head[1], 1, 16)
  if is_message(head[1]) and (oldest == '' or id < oldest) then
    oldest = id
  end
  after, looks = '(' .. head[2], looks + 1
end
local found = call('HGETALL', state)
local figures, message = {}, ''
for i = 1, #found, 2 do
  if found[i] == 'message' then
    message = found[i + 1]
  else
    figures[#figures + 1] = found[i]
    figures[#figures + 1] = found[i + 1]
  end
end
local list = {}
if ARGV[5] == '1' then
  local all = call('HGETALL', members)
  for i = 1, #all, 2 do
    local member = cmsgpack.unpack(all[i + 1])
    local rest = {all[i], member[1], member[2], member[5],
      tonumber(call('ZSCORE', clients, all[i]) or '0'), member[6],
      call('SISMEMBER', waiting, seat(member[1], all[i]))}
    for _, value in ipairs(rest) do
      list[#list + 1] = value
    end
  end
else
  message = string.sub(message, 1, 16)
end
return {now_us, figures, message, call('ZCARD', queue), call('ZCARD', clients), call('SCARD', sync),
  call('SCARD', waiting), oldest, list}
