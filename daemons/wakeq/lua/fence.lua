-- fence: put ahead of other scripts: run them only for who owns the group (strict order), or leads.
--
-- KEYS[1] .. the script's own; the last one is
--            wakeq:{S}:owner:G     HASH  who owns the group, or
--            wakeq:{S}:lease:NAME  HASH  who leads, see elect.lua
-- ARGV[1] .. the script's own; the last one is
--            token   the fencing token that the caller was given as the owner or the leader
--
-- Takes those two away, so that the script finds its own keys and arguments alone. Returns an
-- error, FENCED, if there is another one since: the caller was paused or cut off for too long.
--
-- Atomic because it is one script with the one that it stands ahead of.
if redis.call('HGET', KEYS[#KEYS], 'token') ~= ARGV[#ARGV] then
  return redis.error_reply('FENCED ' .. (redis.call('HGET', KEYS[#KEYS], 'consumer') or 'nobody'))
end
KEYS[#KEYS] = nil
ARGV[#ARGV] = nil
