-- emit: publish what is due at one time, as the leader of a node, with fence.lua ahead of it.
--
-- KEYS[1]  S                        STREAM or LIST  where the messages go
-- KEYS[2]  wakeq:{S}:emission:NAME  HASH  what the leaders of the node have emitted:
--            seq       how often
--            at        for which time last, us
--            messages  how many messages that were
-- ARGV[1]  seq    which emission this is, 1 more than the last one; 0: only look
-- ARGV[2]  at     the time that it is for, us; not before that
-- ARGV[3]  kind   'stream' or 'list'
-- ARGV[4..]       for each message, 0 or more: how many items it has, and these: field, value ... in
--                 a stream, its text in a list
--
-- Returns {seq, at, now, how}: the last emission, the time now, us, and what became of this one:
-- 'done'; 'before' if it has been done, by a request whose reply was lost; 'early'; '' if it was not
-- its turn, or if ARGV[1] is 0. at is '' if there was none yet.
--
-- Also an emission without messages counts: nothing was to be said at its time.
--
-- Atomic because each emission happens once, with a number of its own, and only for who leads.
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000000 + time[2])
local seen = redis.call('HMGET', KEYS[2], 'seq', 'at')
local seq, at = tonumber(seen[1] or '0'), seen[2] or ''
if ARGV[1] == '0' or tonumber(ARGV[1]) ~= seq + 1 then
  return {seq, at, now, seq > 0 and tonumber(ARGV[1]) == seq and 'before' or ''}
end
if tonumber(ARGV[2]) > tonumber(now) then
  return {seq, at, now, 'early'}
end
local messages, i = 0, 4
while ARGV[i] do
  local last = i + ARGV[i]
  if ARGV[3] == 'list' then
    redis.call('LPUSH', KEYS[1], ARGV[last])
  else
    redis.call('XADD', KEYS[1], '*', unpack(ARGV, i + 1, last))
  end
  messages, i = messages + 1, last + 1
end
redis.call('HSET', KEYS[2], 'seq', string.format('%d', seq + 1), 'at', ARGV[2])
redis.call('HINCRBY', KEYS[2], 'messages', messages)
return {seq + 1, ARGV[2], now, 'done'}
