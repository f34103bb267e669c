-- read: read messages for a group, without waiting (strict order, where reads are fenced).
--
-- KEYS[1]  S                  STREAM  the user's messages
-- KEYS[2]  wakeq:{S}:retry:G  STREAM  messages for the group alone
-- ARGV[1]  group
-- ARGV[2]  consumer
-- ARGV[3]  count      at most this many of each, 1..
-- ARGV[4]  from       '>' for what nobody had yet, or the id after which pending ones are read
-- ARGV[5]  from       the same for KEYS[2]
--
-- Returns what XREADGROUP returns; if that is nothing, the ids up to which both streams were
-- delivered, for the caller to wait there.
--
-- Atomic because nothing may be added between the read and the ids.
local entries = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3],
  'STREAMS', KEYS[1], KEYS[2], ARGV[4], ARGV[5])
if entries then
  return entries
end
local ids = {}
for i = 1, 2 do
  ids[i] = '0-0'
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[i])) do
    local field = {}
    for j = 1, #group, 2 do
      field[group[j]] = group[j + 1]
    end
    if field.name == ARGV[1] then
      ids[i] = field['last-delivered-id']
    end
  end
end
return ids
