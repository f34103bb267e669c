-- resign: hand the lease over, and tell the candidates.
--
-- KEYS[1]  wakeq:lease:NAME  HASH  who leads, see elect.lua
-- ARGV[1]  token    what the caller was given as the leader
-- ARGV[2]  channel  where candidates listen
--
-- Returns 1 if the caller was the leader, else 0.
--
-- The token goes up by one, so that nothing that the caller has sent before passes the fence
-- (fence.lua) after this.
--
-- Atomic because the next leader may be elected from here on, and only the leader can resign.
local token = redis.call('HGET', KEYS[1], 'token')
if token ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'holder', '', 'token', string.format('%d', token + 1))
redis.call('HDEL', KEYS[1], 'who', 'until')
-- A hint only, and not everybody may publish.
redis.pcall('PUBLISH', ARGV[2], ARGV[1])
return 1
