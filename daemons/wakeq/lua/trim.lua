-- trim: remove the oldest entries of a stream that no group needs any more, one slice of them.
--
-- KEYS[1]  S  STREAM  the user's messages
-- ARGV[1]  keep        at least so many of the newest entries stay, 0..
-- ARGV[2]  max_length  so many stay at most, needed or not, keep..; 0: no limit
-- ARGV[3]  slice       at most so many entries go at once, 1.. (a node of the stream that has
--                      more goes whole)
-- ARGV[4]  counted     '': remove; 0..: only count, after so many that were counted before
-- ARGV[5]  from        where to go on counting: '-', then what the last call returned
--
-- Returns {kind, removed, lost, left, done, from}:
--   kind     what S is; if that is not 'stream', the rest is 0 and ''
--   removed  entries that every group had handled
--   lost     entries beyond: from the first on that some group needed, or all without a group
--   left     how many there are now
--   done     1 if there is nothing more to remove, else 0
--   from     for the next call when counting
--
-- A group needs what is pending and what comes after its last delivered entry. A pending entry
-- that was deleted from the stream is needed by nobody. Without a group nobody can tell what is
-- needed, so then only max_length removes anything.
--
-- XTRIM with ~ removes whole nodes, which is quick; what is left over then is less than a node,
-- and is removed one by one.
--
-- Atomic because of the groups: one that is made, or set back, between the look and the removal
-- would lose what it needs.
local MOST = '18446744073709551615'
-- How many entries are looked at, which may be large, to tell whether a pending one is there.
local looks = 100
-- Freeing so many bytes takes about a millisecond; so does counting so many.
local bytes = ARGV[4] == '' and 16777216 or 262144

local keep, max_length = tonumber(ARGV[1]), tonumber(ARGV[2])
local slice = tonumber(ARGV[3])
local counted, from = tonumber(ARGV[4]), ARGV[5]

-- Ids are of 64 bits, numbers of 53: both parts are compared and added to as text.
local function below(a, b)
  if #a ~= #b then
    return #a < #b
  end
  return a < b
end

local function before(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  if a_ms ~= b_ms then
    return below(a_ms, b_ms)
  end
  return below(a_seq, b_seq)
end

local function plus_one(number)
  local head, nines = string.match(number, '^(%d-)(9*)$')
  local last = head == '' and 0 or tonumber(string.sub(head, -1))
  return string.sub(head, 1, -2) .. last + 1 .. string.rep('0', #nines)
end

-- The smallest id after another one.
local function following(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if seq ~= MOST then
    return ms .. '-' .. plus_one(seq)
  end
  return ms == MOST and id or plus_one(ms) .. '-0'
end

-- The id from which on some group needs entries; nil if there is no group.
local function needed_from(first)
  local bound = nil
  for _, each in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #each, 2 do
      group[each[i]] = each[i + 1]
    end
    local unread = following(group['last-delivered-id'])
    if not bound or before(unread, bound) then
      bound = unread
    end
    local at = group.pending > 0 and first
    while at do
      local pending = redis.call('XPENDING', KEYS[1], group.name, at, '+', 1)[1]
      at = nil
      if pending and before(pending[1], bound) then
        local entry = {pending[1]}
        if looks > 0 then
          looks = looks - 1
          entry = redis.call('XRANGE', KEYS[1], pending[1], '+', 'COUNT', 1)[1]
        end
        if entry and entry[1] == pending[1] then
          bound = entry[1]
        elseif entry then
          at = entry[1]
        end
      end
    end
  end
  return bound
end

-- Count what remove() removes below an id.
local function count(bound, room)
  local most = math.min(room, slice)
  local entries = redis.call('XRANGE', KEYS[1], from, '(' .. bound, 'COUNT', most)
  if #entries > 0 then
    from = '(' .. entries[#entries][1]
  end
  return #entries, #entries < most or most == room
end

-- Remove from the beginning, at most `room` entries and about a slice, by MINID or MAXLEN.
-- Returns how many, and whether that was all that there is to remove.
local function remove(strategy, threshold, room)
  local limit = math.min(room, slice)
  local removed = redis.call('XTRIM', KEYS[1], strategy, '~', threshold, 'LIMIT', limit)
  while removed == 0 and limit < room do
    -- Either the first node has more entries, or it is needed in part.
    limit = math.min(room, limit * 2)
    removed = redis.call('XTRIM', KEYS[1], strategy, '~', threshold, 'LIMIT', limit)
  end
  room = room - removed
  if limit < room + removed then
    return removed, false
  end
  if room > 0 and strategy == 'MINID' then
    -- Not by the bound alone: `room` may be less than what lies below it in the first node.
    local entries = redis.call('XRANGE', KEYS[1], '-', '(' .. threshold, 'COUNT', room)
    if #entries > 0 then
      removed = removed + redis.call('XTRIM', KEYS[1], 'MINID', following(entries[#entries][1]))
    end
  elseif room > 0 then
    removed = removed + redis.call('XTRIM', KEYS[1], 'MAXLEN', threshold)
  end
  return removed, true
end

local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'stream' then
  return {kind, 0, 0, 0, 1, ''}
end
local left = redis.call('XLEN', KEYS[1]) - (counted or 0)
local removed, lost, done = 0, 0, true
if left > keep then
  local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  local size = 0
  for _, each in ipairs(first[2]) do
    size = size + #each
  end
  slice = math.max(1, math.min(slice, math.floor(bytes / (size + 1))))
  local bound = needed_from(first[1])
  if bound and counted then
    removed, done = count(bound, left - keep)
  elseif bound then
    removed, done = remove('MINID', bound, left - keep)
  end
  left = left - removed
end
if done and max_length > 0 and left > max_length then
  if counted then
    lost = left - max_length
  else
    lost, done = remove('MAXLEN', max_length, left - max_length)
  end
  left = left - lost
end
return {kind, removed, lost, left, done and 1 or 0, from}
