#!lua flags=no-writes
-- Show people jobs without what is long in them: what stands on a stream between two ids, or at places, with each value cut.
-- ARGV: bytes of a value that are shown, 'range', number of the stream, from, to (as XRANGE has them), how many at most, 1 for the newest
-- first; or the same bytes, 'at', and in turn the number of a stream (0: what is delayed) and an id.
-- Reply: 1 where the bytes ran out before that was all (ask again behind the last), then per entry {id, bytes of all its fields, fields};
-- of what is delayed its due time in ms stands before the fields, which begin with `stream`; bytes are -1 where nothing is there.

local BYTES = 262144 -- read in a call, and one entry more; measured: reading them takes under half a millisecond
local PAGE = 100 -- entries in a step; a guess: what is read beyond the bytes is a step of small ones at most
local cut, left = tonumber(ARGV[1]), BYTES
local reply = {0}

local function shown(fields)
  local found = {}
  for i = 1, math.min(#fields, 2 * MAX_FIELDS) do found[i] = string.sub(fields[i], 1, cut) end
  return found
end

local function add(row, fields, size)
  row[2], row[#row + 1] = size, shown(fields)
  reply[#reply + 1], left = row, left - size
end

local function range(s, from, to, n, is_newest)
  local page, size, seen = 1, 0, 0
  while n > 0 do
    if left <= 0 then
      reply[1] = 1
      return
    end
    page = math.min(page, n)
    local call = is_newest and {'XREVRANGE', KEYS[s], to, from} or {'XRANGE', KEYS[s], from, to}
    local rows = redis.call(call[1], call[2], call[3], call[4], 'COUNT', page)
    for _, row in ipairs(rows) do
      local bytes = bytes_of(row[2])
      add({row[1], 0}, row[2], bytes)
      size, seen = size + bytes, seen + 1
      if is_newest then to = '(' .. row[1] else from = '(' .. row[1] end
    end
    if #rows < page then return end
    n = n - #rows
    page = math.max(1, math.min(PAGE, 4 * page, math.floor(left * seen / math.max(1, size))))
  end
end

local function delayed(member)
  local packed = redis.call('HGET', MSG, member)
  local record = packed and unpack_record(packed)
  local due = tonumber(redis.call('ZSCORE', DUE, member) or '')
  if not due then return false end
  reply[#reply + 1] = {member, packed and #packed or 0, ms(math.max(0, math.min(due, MAX_MS))), shown(record or {})}
  left = left - (packed and #packed or 0)
  return true
end

if ARGV[2] == 'range' then
  range(tonumber(ARGV[3]), ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7] == '1')
  return reply
end
for i = 3, #ARGV, 2 do
  if left <= 0 then
    reply[1] = 1
    return reply
  end
  local s, id = tonumber(ARGV[i]), ARGV[i + 1]
  if s == 0 then
    if not delayed(id) then reply[#reply + 1] = {id, -1, '0', {}} end
  else
    local fields = fields_of(KEYS[s], id)
    if fields then add({id, 0}, fields, bytes_of(fields)) else reply[#reply + 1] = {id, -1, {}} end
  end
end
return reply
