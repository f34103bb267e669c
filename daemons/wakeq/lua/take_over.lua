-- take_over: have what others of the group have pending, and delete those others (strict order).
--
-- KEYS[1]  S or wakeq:{S}:retry:G  STREAM  the messages
-- ARGV[1]  group
-- ARGV[2]  consumer   the caller, who owns the group
-- ARGV[3]  count      at most this many in one call, 1..1000
-- ARGV[4]  start      the id to begin at: 0-0, then what the last call returned
--
-- Returns {next, left}: where the next call begins, 0-0 if there is nothing after this one; and
-- how many the others had before this call. Entries that were deleted from the stream are dropped
-- from the pending ones by XAUTOCLAIM itself.
--
-- Atomic because a consumer that is deleted must have nothing pending.
local function others()
  local list = {}
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local field = {}
    for i = 1, #consumer, 2 do
      field[consumer[i]] = consumer[i + 1]
    end
    if field.name ~= ARGV[2] then
      list[#list + 1] = field
    end
  end
  return list
end

local left = 0
for _, other in ipairs(others()) do
  left = left + other.pending
end
local following = '0-0'
if left > 0 then
  following = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[4],
    'COUNT', ARGV[3], 'JUSTID')[1]
end
if following == '0-0' then
  for _, other in ipairs(others()) do
    if other.pending == 0 then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], other.name)
    end
  end
end
return {following, left}
