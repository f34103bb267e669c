-- backlog: tell what there is to do for each of several groups.
--
-- KEYS[1]  S                   STREAM  the user's messages
-- KEYS[2]  wakeq:{S}:retry:G   STREAM  messages for the group alone
-- KEYS[3]  wakeq:{S}:alive:G:  STRING  with a consumer's name behind it: that consumer lives
-- KEYS[4]  wakeq:{S}:paused    STRING  there if nothing of S is to be handled now
-- ARGV[1]  group
-- ARGV[2]  start        where a missing group begins: '0', '$', or '' if none may be missing
-- ARGV[3]  claim_after  ms that messages of a consumer that is gone are left alone, 0..
-- ARGV[4]  count        of the caller's own consumers of the group, 0.., followed by their names
-- and so on for each further group; at most 100, on Redis Cluster all in one slot.
--
-- Returns for each group an array:
--   1  error      what Redis says against the look, or ''; then nothing follows
--   2  delivered  id up to which S was delivered; '' if the group is missing and must be made:
--                 it begins at '$', or S is paused, and resume.lua rings only for those there are
--   3  retried    the same for the retry stream; 0-0 if that is empty; if S is paused, the last id
--                 in it: what is added after that may be the ring
--   4  unread     1 if there is an entry after one of these ids, else 0
--   5  lag        how many there are: a gauge, estimated where Redis does not know
--   6  pending    how many entries are pending, whoever has them
--   7  others     how many consumers live that are not the caller's own; 0 for a quiet group
--   8  claimable  ms until entries of a consumer that is gone, not one of the caller's own, may
--                 be claimed; 0 now, -1 if there are none
--   9  paused     1 if S is paused, else 0; then there is nothing to do, whatever there is
--  10.. for each of the caller's own consumers: how many entries it has pending, and 1 if its
--                 alive key is there, else 0
--
-- Each group is looked at again each minute, and hardly ever is there anything. So quiet groups
-- are told from the others first: nothing is unread, nothing is pending. For them it takes
--   XINFO GROUPS of S   once for each stream: where the group is (it may have been deleted, made
--                       again or moved back, of which nothing else tells), what it has pending
--   XREAD               once for 10 groups: is anything after that, or anything at all in the
--                       retry stream, whose entries are deleted when they are acknowledged
--   EXISTS              once for 1000 of the caller's own consumers: does one live; and once for
--                       all streams: is one paused
-- The others are examined one by one: a further XINFO GROUPS, XRANGE and XINFO CONSUMERS for each
-- of the two streams, EXISTS for each consumer, and XPENDING for those that are gone.
--
-- Whether there is work is asked by XREAD and XRANGE: the lag of XINFO GROUPS is unknown or wrong
-- after deletions. The alive keys are computed here, because the names of the consumers come from
-- XINFO CONSUMERS: passing the keys would need a second call for each look. They are in the
-- slot of the prefix that is passed.
--
-- Atomic because what is watched next begins at the ids that are returned: between the ids
-- and the answer nothing may be added. Changes nothing.
local function fields(list)
  local map = {}
  for i = 1, #list, 2 do
    map[list[i]] = list[i + 1]
  end
  return map
end

-- The groups of each key, by name: several groups of one stream are asked for once.
local seen = {}

local function groups_of(key)
  if not seen[key] then
    local list = redis.pcall('XINFO', 'GROUPS', key)
    if list.err then
      if not string.find(list.err, 'no such key', 1, true) then
        return nil, list.err
      end
      list = {}
    end
    local groups = {}
    for _, each in ipairs(list) do
      local group = fields(each)
      groups[group.name] = group
    end
    seen[key] = groups
  end
  return seen[key]
end

local function milliseconds(id)
  return tonumber(string.match(id, '^%d+'))
end

-- How much of the stream lies after an id, by the times in the ids.
local function estimate(key, id)
  local stream = fields(redis.call('XINFO', 'STREAM', key))
  local first = milliseconds(stream['first-entry'][1])
  local last = milliseconds(stream['last-generated-id'])
  if milliseconds(id) <= first or last == first then
    return stream.length
  end
  return math.ceil(stream.length * (last - milliseconds(id)) / (last - first))
end

-- Look at one stream for its part of a group; adds to `look`.
local function examine(key, group, start, look)
  local groups, err = groups_of(key)
  if err then
    return err
  end
  local known = groups[group]
  if not known and start == '' then
    return 'NOGROUP ' .. group
  elseif not known and start == '$' then
    return nil, ''
  end
  local delivered = known and known['last-delivered-id'] or '0-0'
  if #redis.call('XRANGE', key, '(' .. delivered, '+', 'COUNT', 1) > 0 then
    look.unread = 1
    look.lag = look.lag + (known and known.lag or estimate(key, delivered))
  end
  if known then
    look.pending = look.pending + known.pending
    for _, each in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
      local consumer = fields(each)
      local entry = look.of[consumer.name] or {pending = 0}
      entry.pending = entry.pending + consumer.pending
      if consumer.pending > 0 then
        entry[#entry + 1] = key
      end
      look.of[consumer.name] = entry
    end
  end
  return nil, delivered
end

-- Milliseconds until one of a consumer's entries may be claimed.
local function claimable_in(keys, group, consumer, claim_after)
  local wait = claim_after + 1
  for _, key in ipairs(keys) do
    if #redis.call('XPENDING', key, group, 'IDLE', claim_after, '-', '+', 1, consumer) > 0 then
      return 0
    end
    for _, entry in ipairs(redis.call('XPENDING', key, group, '-', '+', 10, consumer)) do
      wait = math.min(wait, claim_after - entry[3] + 1)
    end
  end
  return math.max(wait, 1)
end

-- Whether none of the consumers lives that the caller has, in all groups.
local function all_asleep(asked)
  local names = {}
  for _, each in ipairs(asked) do
    for _, name in ipairs(each.own) do
      names[#names + 1] = each.alive .. name
    end
  end
  for i = 1, #names, 1000 do
    if redis.call('EXISTS', unpack(names, i, math.min(i + 999, #names))) > 0 then
      return false
    end
  end
  return true
end

-- Note in some groups the id up to which they are quiet, if it turns out that they are.
local function find_quiet(some)
  local names, ids = {}, {}
  for _, each in ipairs(some) do
    names[#names + 1], names[#names + 2] = each.stream, each.retry
    ids[#ids + 1], ids[#ids + 2] = each.position, '0-0'
  end
  for _, id in ipairs(ids) do
    names[#names + 1] = id
  end
  local reply = redis.pcall('XREAD', 'COUNT', 1, 'STREAMS', unpack(names))
  if reply and reply.err then
    return -- one of them is no stream: they are examined one by one
  end
  local busy = {}
  for _, each in ipairs(reply or {}) do
    busy[each[1]] = true
  end
  for _, each in ipairs(some) do
    each.quiet = not busy[each.stream] and not busy[each.retry]
  end
end

-- Few at a time, because XREAD brings whole messages with it.
local function find_all_quiet(asked)
  local some = {}
  for _, each in ipairs(asked) do
    local groups = not each.is_paused and groups_of(each.stream)
    local known = groups and groups[each.group]
    if known and known.pending == 0 and (known.lag or 0) == 0 then
      each.position = known['last-delivered-id']
    elseif groups and not known and each.start == '0' then
      each.position = '0-0'
    end
    if each.position then
      some[#some + 1] = each
    end
    if #some == 10 then
      find_quiet(some)
      some = {}
    end
  end
  if #some > 0 then
    find_quiet(some)
  end
end

-- A group of a paused stream: is it there, and after which id comes the ring?
local function look_at_paused(asked)
  local groups, err = groups_of(asked.stream)
  if err then
    return {err}
  end
  local rings
  rings, err = groups_of(asked.retry)
  if err then
    return {err}
  end
  local known = groups[asked.group]
  if not known and asked.start == '' then
    return {'NOGROUP ' .. asked.group}
  end
  local delivered = known and known['last-delivered-id'] or ''
  if asked.start ~= '' and not rings[asked.group] then
    delivered = ''
  end
  local last = '0-0'
  if redis.call('EXISTS', asked.retry) == 1 then
    last = fields(redis.call('XINFO', 'STREAM', asked.retry))['last-generated-id']
  end
  local answer = {'', delivered, last, 0, 0, 0, 0, -1, 1}
  for _ = 1, 2 * #asked.own do
    answer[#answer + 1] = 0
  end
  return answer
end

local function look_at(asked, asleep)
  local look = {unread = 0, lag = 0, pending = 0, of = {}}
  local delivered, retried = asked.position, '0-0'
  if not asked.quiet then
    local err
    err, delivered = examine(asked.stream, asked.group, asked.start, look)
    if err then
      return {err}
    end
    -- Made by the first consumer, so it may be missing at any time.
    err, retried = examine(asked.retry, asked.group, '0', look)
    if err then
      return {err}
    end
  end
  local answer = {'', delivered, retried, look.unread, look.lag, look.pending, 0, -1, 0}
  for _, name in ipairs(asked.own) do
    answer[#answer + 1] = look.of[name] and look.of[name].pending or 0
    answer[#answer + 1] = asleep and 0 or redis.call('EXISTS', asked.alive .. name)
    look.of[name] = nil
  end
  for name, entry in pairs(look.of) do
    if redis.call('EXISTS', asked.alive .. name) == 1 then
      answer[7] = answer[7] + 1
    elseif #entry > 0 then
      local wait = claimable_in(entry, asked.group, name, asked.claim_after)
      answer[8] = answer[8] < 0 and wait or math.min(answer[8], wait)
    end
  end
  return answer
end

local asked = {}
local at = 1
local flags = {}
for i = 1, #KEYS, 4 do
  local own = {}
  for j = 1, tonumber(ARGV[at + 3]) do
    own[j] = ARGV[at + 3 + j]
  end
  asked[#asked + 1] = {
    stream = KEYS[i], retry = KEYS[i + 1], alive = KEYS[i + 2], paused = KEYS[i + 3],
    group = ARGV[at], start = ARGV[at + 1], claim_after = tonumber(ARGV[at + 2]), own = own,
  }
  flags[#flags + 1] = KEYS[i + 3]
  at = at + 4 + #own
end
if redis.call('EXISTS', unpack(flags)) > 0 then
  for _, each in ipairs(asked) do
    each.is_paused = redis.call('EXISTS', each.paused) == 1
  end
end
find_all_quiet(asked)
local asleep = all_asleep(asked)
local answers = {}
for _, each in ipairs(asked) do
  answers[#answers + 1] = each.is_paused and look_at_paused(each) or look_at(each, asleep)
end
return answers
