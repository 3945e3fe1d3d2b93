#!lua
-- Enqueue a chunk of messages once, however often it is sent.
-- ARGV: chunk, then per run of messages that differ in their payload alone: stream, at in ms ('' for now), how many words the other
-- fields and values have, how many messages they are, these fields and values in turn, the payloads.
-- Reply: the first entry id on each of the four streams ('' where none), then the positions (from 0) of copies that were dropped
-- since a live job owns their key. Ids on one stream are consecutive: the first is made by the server, the others by its
-- millisecond and the next number (with '*', Redis 7.0 would go on with the clock inside a script).
-- The chunk's mark is written last: first, a refused XADD and a repeat would be a loss. It keeps the reply for the repeat, which
-- writes it again: WAIT and WAITAOF confirm the caller's own last write, and for a caller that wrote nothing they confirm nothing.

local CHUNK_LIFE_MS = 600000 -- longer than any producer repeats
local mark = PREFIX .. 'seen:c:' .. ARGV[1]
local known = redis.call('GET', mark)
if known then
  redis.call('SET', mark, known, 'PX', CHUNK_LIFE_MS)
  return cmsgpack.unpack(known)
end

local now = now_ms()
local reply = {'', '', '', ''}
local next_id = {'*', '*', '*', '*'}
local at, position = 2, 0

local function delay(s, due, fields)
  local record = {'stream', STREAMS[s], unpack(fields)}
  local id = field(record, 'id')
  local member = id
  if redis.call('HEXISTS', MSG, member) == 1 then member = id .. '#' .. ARGV[1] .. '/' .. position end
  record[#record + 1] = 'first_at'
  record[#record + 1] = ms(now)
  redis.call('HSET', MSG, member, cmsgpack.pack(record))
  redis.call('ZADD', DUE, due, member)
  return 'due ' .. member
end

while at <= #ARGV do
  local s, due, size, count = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local fields = {unpack(ARGV, at + 4, at + 3 + size)}
  local key = field(fields, 'key')
  at = at + 4 + size
  fields[size + 1] = 'data'
  for i = at, at + count - 1 do
    fields[size + 2] = ARGV[i]
    if key and not key_is_free(key, '') then
      reply[#reply + 1] = position
    else
      local place
      if due == '' then
        local id = redis.call('XADD', KEYS[s], next_id[s], unpack(fields))
        if reply[s] == '' then
          reply[s] = id
          next_id[s] = string.match(id, '^%d+') .. '-*'
        end
        place = key and STREAMS[s] .. ' ' .. id
      else
        place = delay(s, due, fields)
      end
      if key then own_key(key, place) end
    end
    position = position + 1
  end
  at = at + count
end
redis.call('SET', mark, cmsgpack.pack(reply), 'PX', CHUNK_LIFE_MS)
return reply
