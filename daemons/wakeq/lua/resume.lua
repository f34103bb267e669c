-- resume: let a stream's messages be handled again, and ring for all of its groups.
--
-- KEYS[1]  wakeq:{S}:paused   STRING  there if nothing of S is to be handled now
-- KEYS[2]  S                  STREAM  the user's messages
-- KEYS[3]  wakeq:{S}:retry:   STREAM  with a group's name behind it: messages for the group alone
--
-- Returns {value, rung}: what stood in KEYS[1], false if it was not there; and how many groups
-- were rung for. Those have a retry stream; a group without one has no consumer of wakeq, and
-- nobody to delete the bell. Who watches a paused stream for a group makes both (ensure_group).
--
-- The keys of the groups are computed here, because their names come from XINFO GROUPS; they are
-- in the slot of the prefix that is passed. A ring is a hint: where there is something else than a
-- stream, the others are rung for all the same.
--
-- Atomic because no group may be made unseen between the end of the pause and the rings.
local value = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[2])
local rung = 0
for i = 1, groups.err and 0 or #groups do
  local group
  for j = 1, #groups[i], 2 do
    if groups[i][j] == 'name' then
      group = groups[i][j + 1]
    end
  end
  local id = redis.pcall(
    'XADD', KEYS[3] .. group, 'NOMKSTREAM', '*', 'wakeq.handed_back', 'resume')
  if type(id) == 'string' then
    rung = rung + 1
  end
end
return {value, rung}
