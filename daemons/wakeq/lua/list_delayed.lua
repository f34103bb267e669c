-- list_delayed: show some delayed messages of one stream, the one that is due first at first.
--
-- KEYS[1]  wakeq:{S}:delayed         ZSET  when each delayed message is due, ms
-- KEYS[2]  wakeq:{S}:delayed:repair  ZSET  due retries that wait for a repair
-- KEYS[3]  wakeq:{S}:delayed:data    HASH  the delayed messages, packed
-- ARGV[1]  start   how many to pass over, 0..
-- ARGV[2]  count   at most so many, 1..1000; fewer, when they are large
-- ARGV[3]  bytes   of each body, at most so many, 0..
--
-- Those that wait for a repair come first.
--
-- Returns {now, how many there are, rows}: now in ms; a row is {id, due in ms, 1 if it waits for a
-- repair, group, first id, attempt, error, body, bytes of the whole body}; of what cannot be read,
-- nothing follows the third.
--
-- Atomic because the figures are of one moment. Changes nothing.
local bytes_most = 1024 * 1024
local time = redis.call('TIME')
local waiting = redis.call('ZCARD', KEYS[2])
local total = waiting + redis.call('ZCARD', KEYS[1])
local start, count, body_most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local rows, bytes = {}, 0

local function row(id, due, waits)
  local data = redis.call('HGET', KEYS[3], id)
  local made = {id, due, waits}
  bytes = bytes + #id + #(data or '')
  local readable, items = pcall(cmsgpack.unpack, data or '')
  if data and readable and type(items) == 'table' then
    local shown = {['wakeq.attempt'] = '1', ['wakeq.error'] = '', body = ''}
    for i = 3, #items, 2 do
      if shown[items[i]] then
        shown[items[i]] = items[i + 1]
      end
    end
    local body = tostring(shown.body)
    for _, value in ipairs({items[1], items[2], shown['wakeq.attempt'], shown['wakeq.error']}) do
      made[#made + 1] = tostring(value)
    end
    made[#made + 1] = string.sub(body, 1, body_most)
    made[#made + 1] = #body
  end
  return made
end

local function add(key, from, waits)
  local ids = redis.call('ZRANGE', key, from, from + count - #rows - 1, 'WITHSCORES')
  for i = 1, #ids, 2 do
    if bytes >= bytes_most then
      return
    end
    rows[#rows + 1] = row(ids[i], ids[i + 1], waits)
  end
end

if start < waiting then
  add(KEYS[2], start, 1)
end
if #rows < count and start + #rows >= waiting then
  add(KEYS[1], math.max(0, start - waiting), 0)
end
return {time[1] * 1000 + math.floor(time[2] / 1000), total, rows}
