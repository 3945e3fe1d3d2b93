#!lua flags=allow-oom
-- Give a stream that an id far ahead has closed a fresh key, then move up to n of its entries there; repeated until none is left.
-- ARGV: stream, how far ahead of now its last id must lie in ms, n. Reply: entries moved, entries left in the closed one, 1 when this
-- call closed it.
-- The old key is set aside whole, with its group: what its consumers hold is no lease on the fresh one, so jobs that run at that moment
-- are cut off and run again. All else waits in its old order. A job keeps its id and birth; deliveries count anew.
-- Order per entry: XADD, the key's mark, XDEL. Killed anywhere, what is left stands in the closed stream, for the next call.

local s, ahead_ms, n = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local MAX_BYTES, PAGE = 1000000, 10
local stream, closed = KEYS[s], closed_name(s)
local now = now_ms()
local is_new = 0

if redis.call('EXISTS', closed) == 0 then
  local info = redis.pcall('XINFO', 'STREAM', stream)
  local last = 0
  for i = 1, info.err and 0 or #info, 2 do
    if info[i] == 'last-generated-id' then last = tonumber(string.match(info[i + 1], '^%d+')) end
  end
  if last <= now + ahead_ms then return {0, 0, 0} end
  redis.call('RENAME', stream, closed)
  is_new = 1
end
if redis.call('EXISTS', stream) == 0 then redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM') end

local function move(id, fields)
  local size = 0
  if not field(fields, 'id') then
    fields[#fields + 1] = 'id'
    fields[#fields + 1] = STREAMS[s] .. '-' .. id
  end
  if not field(fields, 'first_at') then
    fields[#fields + 1] = 'first_at'
    fields[#fields + 1] = first_time(now, string.match(id, '^%d+'))
  end
  for i = 1, #fields do size = size + #fields[i] end
  if #fields > 2 * MAX_FIELDS + 16 then
    add_letter(fields, {
      'dead_reason', 'too-large', 'dead_error', 'more fields than a message may have', 'dead_stack', '', 'dead_attempts', '0',
      'dead_from', stands_at(s, id), 'dead_at', ms(now),
    })
  else
    local fresh = redis.call('XADD', stream, '*', unpack(fields))
    move_key(fields, STREAMS[s] .. ' ' .. id, STREAMS[s] .. ' ' .. fresh)
  end
  redis.call('XDEL', closed, id)
  return size
end

local moved, bytes = 0, 0
while moved < n and bytes < MAX_BYTES do
  local page = redis.call('XRANGE', closed, '-', '+', 'COUNT', PAGE)
  if #page == 0 then break end
  for _, entry in ipairs(page) do
    bytes = bytes + move(entry[1], entry[2])
    moved = moved + 1
  end
end
local left = redis.call('XLEN', closed)
if left == 0 then redis.call('DEL', closed) end
return {moved, left, is_new}
