-- take_over: have what others of the group have pending, and delete those others (strict order).
--
-- KEYS[1]  S or wakeq:{S}:retry:G  STREAM  the messages
-- ARGV[1]  group
-- ARGV[2]  consumer   the caller, who owns the group
-- ARGV[3]  count      at most this many in one call, 1..1000
--
-- Returns how many were taken; the caller calls again until it is 0. Entries that were deleted
-- from the stream are dropped from the pending ones by XCLAIM itself.
--
-- Atomic because a consumer that is deleted must have nothing pending.
local taken = 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local field = {}
  for i = 1, #consumer, 2 do
    field[consumer[i]] = consumer[i + 1]
  end
  if field.name ~= ARGV[2] then
    local room = ARGV[3] - taken
    if field.pending > 0 and room > 0 then
      local ids = {}
      for i, entry in ipairs(redis.call(
          'XPENDING', KEYS[1], ARGV[1], '-', '+', room, field.name)) do
        ids[i] = entry[1]
      end
      ids[#ids + 1] = 'JUSTID'
      redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(ids))
      taken = taken + #ids - 1
    end
    if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, field.name) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], field.name)
    end
  end
end
return taken
