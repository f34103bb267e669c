-- redrive: move dead letters back for delivery to their group, as if they had never failed.
--
-- KEYS[1]  wakeq:{S}:dead:G    STREAM  dead letters of the group
-- KEYS[2]  wakeq:{S}:retry:G   STREAM  messages for the group alone
-- ARGV[1..]                    entry ids of dead letters, 1..1000
--
-- Returns for each letter its entry id in KEYS[2]; '' if there is no such letter (any more);
-- a text that begins with ERR if it cannot be added, and then stays where it is.
--
-- What tells of the failure is left behind, and with it the count of attempts: the next one is
-- the first. The other fields go along, those that are ours in front of the user's, as they were.
-- The group need not have its retry stream: who makes the group begins it at the first entry.
--
-- Atomic because a message must be in exactly one place, also when the caller lost the reply
-- and calls again.
local left_behind = {
  ['wakeq.attempt'] = true,
  ['wakeq.error'] = true,
  ['wakeq.traceback'] = true,
  ['wakeq.consumer'] = true,
  ['wakeq.host'] = true,
  ['wakeq.repair_error'] = true,
  ['wakeq.failed_at'] = true,
  ['wakeq.first_failed_at'] = true,
}

local function redriven(id, fields)
  local items = {}
  local has_first_id = false
  for i = 1, #fields, 2 do
    if not left_behind[fields[i]] then
      has_first_id = has_first_id or fields[i] == 'wakeq.first_id'
      items[#items + 1] = fields[i]
      items[#items + 1] = fields[i + 1]
    end
  end
  -- A letter that was not written by fail.lua is told apart by its own id from then on.
  if not has_first_id then
    table.insert(items, 1, 'wakeq.first_id')
    table.insert(items, 2, id)
  end
  return items
end

local results = {}
for i, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  local result = ''
  if entry then
    local items = redriven(id, entry[2])
    -- Lua passes no more than 8000 arguments on.
    if #items > 7990 then
      result = 'ERR it has ' .. #items / 2 .. ' fields, more than can be moved'
    else
      result = redis.call('XADD', KEYS[2], '*', unpack(items))
      -- Not `id`, which need not be whole: 5 finds 5-1 and deletes 5-0.
      redis.call('XDEL', KEYS[1], entry[1])
    end
  end
  results[i] = result
end
return results
