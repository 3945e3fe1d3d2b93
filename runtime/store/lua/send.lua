#!lua
-- Enqueue a chunk of messages once, however often it is sent.
-- ARGV: chunk, for how many ms its mark lives, then per run of messages that differ in their payload alone: stream, at in ms ('' for
-- now), how many words the other fields and values have, how many messages they are, these fields and values in turn, the payloads.
-- Reply: the first entry id on each stream ('' where none); in turn the position (from 0) of each that was dropped, or folded into the job
-- that waits, since a live job owns its key, and that job's id; position and error in turn of messages that could not be stored, each of which concerns
-- that message alone.
-- Ids on one stream are consecutive: the first is made by the server, the others by its millisecond and the next number (with '*',
-- Redis 7.0 would go on with the clock inside a script).
-- The chunk's mark is written last: first, a script that is cut off and a repeat would be a loss. It keeps the reply for the repeat,
-- which writes it again: WAIT and WAITAOF confirm the caller's own last write, and for a caller that wrote nothing they confirm nothing.

local mark, life_ms = PREFIX .. 'seen:c:' .. ARGV[1], ARGV[2]
local known = redis.call('GET', mark)
if known then
  redis.call('SET', mark, known, 'PX', life_ms)
  return cmsgpack.unpack(known)
end

local now = now_ms()
local copies, refused = {}, {}
local reply, next_id = {}, {}
for s = 1, #STREAMS do reply[s], next_id[s] = '', '*' end
reply[#STREAMS + 1], reply[#STREAMS + 2] = copies, refused
local at, position = 3, 0

local function add(s, fields)
  local id = redis.call('XADD', KEYS[s], next_id[s], unpack(fields))
  if reply[s] == '' then
    reply[s] = id
    next_id[s] = string.match(id, '^%d+') .. '-*'
  end
  return id
end

local function store(s, due, fields, key)
  if key then
    local is_copy, id = is_spare(s, due, fields, key, '', now)
    if is_copy then
      copies[#copies + 1], copies[#copies + 2] = position, id
      return
    end
  end
  local place
  if due == '' then
    place = STREAMS[s] .. ' ' .. add(s, fields)
  else
    place = delay(s, due, fields, field(fields, 'id'), ms(now), ARGV[1] .. '/' .. position)
  end
  if key then pcall(own_key, key, place, due) end -- it is stored, whatever becomes of its mark
end

while at <= #ARGV do
  local s, due, size, count = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local fields = {unpack(ARGV, at + 4, at + 3 + size)}
  local key = field(fields, 'key')
  at = at + 4 + size
  fields[size + 1] = 'data'
  for i = at, at + count - 1 do
    fields[size + 2] = ARGV[i]
    local ok, failure = pcall(store, s, due, fields, key)
    if not ok then
      refused[#refused + 1] = position
      refused[#refused + 1] = text_of(failure)
    end
    position = position + 1
  end
  at = at + count
end
redis.pcall('SET', mark, cmsgpack.pack(reply), 'PX', life_ms)
return reply
