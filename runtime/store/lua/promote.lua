#!lua flags=allow-oom
-- Delayed jobs whose time has come go to their streams, at most n.
-- ARGV: n, cursor of the search for lost members ('0' at first).
-- Reply: moved, bad, ms until the next one is due (-1: none), 1 when memory ended the run, else 0, the cursor for the next call.
-- Order per job: XADD, the key's mark, HDEL, ZREM. A record that cannot be read goes to the dead letters, or one bad head would block
-- all behind it. For any other error the member moves a minute on.

local n = tonumber(ARGV[1])
local now = now_ms()
local moved, bad, full = 0, 0, 0
local DELAY_AFTER_ERROR_MS = 60000 -- a guess

local left = {} -- members to be removed at the end, all at once
local function dead_letter(member, packed)
  add_letter({'raw', packed}, {
    'dead_reason', 'unreadable', 'dead_error', 'a delayed record that is no message', 'dead_stack', '', 'dead_attempts', '0',
    'dead_from', 'due/' .. member, 'dead_at', ms(now),
  })
  left[#left + 1] = member
  bad = bad + 1
end

local function promote(member, packed)
  if not packed then
    left[#left + 1] = member
    bad = bad + 1
    return
  end
  local record = unpack_record(packed)
  local s
  for i = 1, #STREAMS do
    if record and record[2] == STREAMS[i] then s = i end
  end
  if not s or #record < 4 or #record > 2 * MAX_FIELDS + 16 then return dead_letter(member, packed) end
  local fields, size = {}, 0
  for i = 3, #record, 2 do
    if record[i] ~= 'at' then
      fields[size + 1], fields[size + 2] = record[i], record[i + 1]
      size = size + 2
    end
  end
  if size == 0 then return dead_letter(member, packed) end
  local id = redis.call('XADD', KEYS[s], '*', unpack(fields))
  move_key(fields, 'due ' .. member, STREAMS[s] .. ' ' .. id)
  left[#left + 1] = member
  moved = moved + 1
end

local members = redis.call('ZRANGEBYSCORE', DUE, '-inf', ms(now), 'LIMIT', 0, n)
local records = #members > 0 and redis.call('HMGET', MSG, unpack(members)) or {}
for at, member in ipairs(members) do
  local ok, failure = pcall(promote, member, records[at])
  if not ok then
    if string.find(text_of(failure), 'OOM', 1, true) then
      full = 1
      break
    end
    redis.call('ZADD', DUE, ms(now + DELAY_AFTER_ERROR_MS), member)
  end
end

if #left > 0 then
  redis.call('HDEL', MSG, unpack(left))
  redis.call('ZREM', DUE, unpack(left))
end

-- A message without a time (a crash between the two writes, or a stranger's hand) is due now.
local cursor = '0'
if redis.call('HLEN', MSG) ~= redis.call('ZCARD', DUE) then
  local page = redis.call('HSCAN', MSG, ARGV[2], 'COUNT', 100)
  cursor = page[1]
  for i = 1, #page[2], 2 do redis.call('ZADD', DUE, 'NX', ms(now), page[2][i]) end
end

local next_one = redis.call('ZRANGE', DUE, 0, 0, 'WITHSCORES')
local wait = -1
if next_one[2] then wait = math.max(0, math.ceil(tonumber(next_one[2]) - now)) end
return {moved, bad, wait, full, cursor}
