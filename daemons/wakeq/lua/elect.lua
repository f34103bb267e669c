-- elect: become the leader under a name, or stay it.
--
-- KEYS[1]  wakeq:lease:NAME  HASH, expires  who leads:
--            holder, who    the leader: its process, and its name for people; an empty holder has
--                           resigned, '?' is whoever it was before Redis lost the key
--            token          the fencing token, higher with each leader
--            beat           how often it has renewed the lease
--            until, lease   when the lease is over, and how long that is, ms
-- ARGV[1]  holder   the caller
-- ARGV[2]  who      its name for people
-- ARGV[3]  lease    ms, 1..
-- ARGV[4]  token    what it was given as the leader, '' if it is a candidate
-- ARGV[5]  watched  the term that the caller has seen run out by its own clock, or ''
-- ARGV[6]  keep     how long the key is kept if nobody comes, ms
--
-- Returns {token, forgot} to the leader, and {'', who, left, term} to others: who leads, for how
-- many ms at least, and what names this renewal of its lease. forgot is 1 if Redis knew less than
-- the leader, whose token it takes over: it has lost what it had.
--
-- Two clocks must agree that a lease is over: that of Redis, and that of the candidate, which has
-- waited for `left` and seen no renewal. So a clock of Redis that is set forward, or a Redis that
-- has lost the key, makes no second leader. Who has resigned is followed at once.
--
-- Tokens are times, so that none is given twice even if the key is lost; the clock may be set back
-- as long as it is not.
--
-- Sources: Kleppmann, "How to do distributed locking", 2016 (fencing tokens); client-go, package
-- leaderelection (a candidate's own clock).
--
-- Atomic because there is one leader at a time, and each has a token of its own.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local seen = redis.call('HMGET', KEYS[1], 'holder', 'who', 'token', 'beat', 'until', 'lease')
local holder, token, beat = seen[1], seen[3] or '0', seen[4] or '0'

local function lead(new_token, new_beat)
  redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'who', ARGV[2], 'token', new_token, 'beat',
    new_beat, 'until', string.format('%d', now + ARGV[3]), 'lease', ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
end

if ARGV[4] ~= '' then
  if ARGV[4] == token and holder == ARGV[1] then
    lead(token, string.format('%d', beat + 1))
    return {token, 0}
  end
  if tonumber(ARGV[4]) > tonumber(token) then
    lead(ARGV[4], '0')
    return {ARGV[4], 1}
  end
end

if not holder then
  -- Nobody ever led, or Redis has forgotten who does: whoever it is, may believe so for a lease.
  holder = '?'
  seen[5], seen[6] = string.format('%d', now + ARGV[3]), ARGV[3]
  redis.call('HSET', KEYS[1], 'holder', holder, 'token', token, 'beat', beat,
    'until', seen[5], 'lease', seen[6])
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
end
local term = token .. ':' .. beat
local lease = tonumber(seen[6] or ARGV[3])
local left = tonumber(seen[5] or '0') - now
if left > lease then
  -- The clock was set back: nobody has the lease for longer than it is.
  left = lease
  redis.call('HSET', KEYS[1], 'until', string.format('%d', now + left))
end
-- Not for the holder either, if it has no token: who is too slow to hear that it was elected is not
-- to be elected again and again.
local free = holder == '' or (left <= 0 and ARGV[5] == term)
if ARGV[4] == '' and free then
  token = string.format('%d', math.max(tonumber(token) + 1, time[1] * 1000000 + time[2]))
  lead(token, '0')
  return {token, 0}
end
return {'', seen[2] or '', left > 0 and left or lease, term}
