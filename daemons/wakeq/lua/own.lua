-- own: become the owner of a group, or stay it (strict order).
--
-- KEYS[1]  wakeq:{S}:owner:G  HASH  who owns the group:
--            process, consumer   who it is; no process: the last owner has left
--            until, lease        when its lease is over, and how long that is, ms
--            token               the fencing token, higher with each owner
--            standby             until when somebody waits for the owner to leave, ms
--            held                which messages hold the line, and their attempts (hold.lua)
-- KEYS[2]  wakeq:{S}:turn:G   STREAM  where is rung when the owner leaves
-- ARGV[1]  process    the caller
-- ARGV[2]  consumer   its name
-- ARGV[3]  lease      ms
-- ARGV[4]  token      what it was given as the owner, '' if it never was
-- ARGV[5]  dead       a process that the caller knows to be dead, or ''
-- ARGV[6]  patience   for how long the caller will wait if it has to, ms
--
-- Returns {token, held, forgot} to the owner, and {'', process, consumer, left, last} to others:
-- who the owner is, for how many ms at least, and the id after which to wait for the ring. The
-- token has changed if there may have been another owner since the caller was it. forgot is 1 if
-- Redis knows less than the caller, whose token it takes over: it has lost what it had.
--
-- Tokens are times, so that none is given twice even if the key is lost; the clock may be set back
-- as long as it is not.
--
-- Source: Kleppmann, "How to do distributed locking", 2016 (fencing tokens).
--
-- Atomic because there is one owner at a time, and each has a token of its own.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local owner = redis.call('HMGET', KEYS[1], 'process', 'consumer', 'until', 'lease', 'token', 'held')
local process, token = owner[1] or '', owner[5] or '0'
local left = tonumber(owner[3] or '0') - now
local lease = tonumber(owner[4] or ARGV[3])
local forgot = 0
if ARGV[4] ~= '' and ARGV[4] == token and process == '' then
  return {token, '', 0} -- a late request of who has left by now
end
if ARGV[4] == '' or ARGV[4] ~= token or process ~= ARGV[1] then
  if process ~= '' and process ~= ARGV[1] and process ~= ARGV[5] and left > 0 then
    if left > lease then
      -- The clock was set back: nobody has the lease for longer than it is.
      left = lease
      redis.call('HSET', KEYS[1], 'until', string.format('%d', now + left))
    end
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
  if ARGV[4] ~= '' and tonumber(ARGV[4]) > tonumber(token) then
    token = ARGV[4]
    forgot = 1
  else
    token = string.format('%d', math.max(tonumber(token) + 1, time[1] * 1000000 + time[2]))
  end
  if ARGV[5] == '' then
    -- Whoever else waits was rung, too, and will say so again.
    redis.call('HDEL', KEYS[1], 'standby')
  end
end
redis.call('HSET', KEYS[1], 'process', ARGV[1], 'consumer', ARGV[2],
  'until', string.format('%d', now + ARGV[3]), 'lease', ARGV[3], 'token', token)
return {token, owner[6] or '', forgot}
