-- ensure_group: make the group of a stream and of its retry stream, if they are missing.
--
-- KEYS[1]  S                     STREAM  the user's messages
-- KEYS[2]  wakeq:{S}:retry:G     STREAM  messages for the group alone
-- KEYS[3]  wakeq:{S}:stats:G     HASH    its field position: S was handled up to there
-- KEYS[4]  wakeq:{S}:paused      STRING  there if nothing of S is to be handled now
-- ARGV[1]  group
-- ARGV[2]  start     where a group that never was begins: '0' or '$'
-- ARGV[3]  position  where the caller knows that it was, an id, or '' to take the recorded one
--
-- Returns {id, paused}: the id at which the group of S was made, or '' if it was there; and
-- whether the stream is paused, 1 or 0.
--
-- A group that was there before, and was deleted or lost with its stream, is made where it
-- was: neither is anything skipped ('$') nor is everything handled again ('0'). A position
-- beyond the last id of the stream belongs to an earlier stream of the same name.
--
-- Atomic because a message must not come in between the look at the stream and the making.
local function make(key, id)
  local made = redis.pcall('XGROUP', 'CREATE', key, ARGV[1], id, 'MKSTREAM')
  if type(made) == 'table' and made.err then
    if string.sub(made.err, 1, 9) == 'BUSYGROUP' then
      return false
    end
    return made
  end
  return true
end

local function after(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  a_ms, b_ms = tonumber(a_ms), tonumber(b_ms)
  return a_ms > b_ms or (a_ms == b_ms and tonumber(a_seq) > tonumber(b_seq))
end

local position = ARGV[3]
if position == '' then
  position = redis.call('HGET', KEYS[3], 'position') or ''
end
local id = ARGV[2]
if string.match(position, '^%d+%-%d+$') then
  id = position
  local last = '0-0'
  if redis.call('EXISTS', KEYS[1]) == 1 then
    local stream = redis.call('XINFO', 'STREAM', KEYS[1])
    for i = 1, #stream, 2 do
      if stream[i] == 'last-generated-id' then
        last = stream[i + 1]
      end
    end
  end
  if after(position, last) then
    id = '0'
  end
end
local retry = make(KEYS[2], '0')
if type(retry) == 'table' then
  return retry
end
local made = make(KEYS[1], id)
if type(made) == 'table' then
  return made
end
return {made and id or '', redis.call('EXISTS', KEYS[4])}
