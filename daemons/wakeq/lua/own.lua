-- own: become the owner of a group, or stay it (strict order).
--
-- KEYS[1]  wakeq:{S}:owner:G  HASH  who owns the group:
--            process, consumer   who it is; the process is '' when the last owner has left
--            until               when the lease is over, ms
--            token               the fencing token, one higher with each owner
--            standby             until when somebody waits for the owner to leave, ms
--            held                which messages hold the line, and their attempts (hold.lua)
-- KEYS[2]  wakeq:{S}:retry:G  STREAM  where is rung when the owner leaves
-- ARGV[1]  process    the caller
-- ARGV[2]  consumer   its name
-- ARGV[3]  lease      ms
-- ARGV[4]  token      what it was given as the owner, '' if it never was
-- ARGV[5]  dead       a process that the caller knows to be dead, or ''
-- ARGV[6]  patience   for how long the caller will wait if it has to, ms
--
-- Returns {token, held} to the owner, and {'', process, consumer, left, last} to others: who the
-- owner is, for how many ms at least, and the id after which to wait for the ring. The token has
-- changed if the caller was not the owner.
--
-- Source: Kleppmann, "How to do distributed locking", 2016 (fencing tokens).
--
-- Atomic because there is one owner at a time, and each has a token of its own.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local owner = redis.call('HMGET', KEYS[1], 'process', 'consumer', 'until', 'token', 'held')
local process, token = owner[1] or '', owner[4] or '0'
local left = tonumber(owner[3] or '0') - now
if ARGV[4] == '' or ARGV[4] ~= token or process ~= ARGV[1] then
  if process ~= '' and process ~= ARGV[1] and process ~= ARGV[5] and left > 0 then
    redis.call('HSET', KEYS[1], 'standby', string.format('%d', now + ARGV[6]))
    local last = '0-0'
    if redis.call('EXISTS', KEYS[2]) == 1 then
      local stream = redis.call('XINFO', 'STREAM', KEYS[2])
      for i = 1, #stream, 2 do
        if stream[i] == 'last-generated-id' then
          last = stream[i + 1]
        end
      end
    end
    return {'', process, owner[2] or '', left, last}
  end
  token = string.format('%d', tonumber(token) + 1)
  redis.call('HDEL', KEYS[1], 'standby')
end
redis.call('HSET', KEYS[1], 'process', ARGV[1], 'consumer', ARGV[2],
  'until', string.format('%d', now + ARGV[3]), 'token', token)
return {token, owner[5] or ''}
