#!lua flags=allow-oom
-- Hand out entries of a room to one consumer, at most n, in one step: as two commands a second taker would steal a running job.
-- ARGV: consumer, stream, room, n, then in turn type and newest version this worker can run (only for the shared room of unknown types).
-- Reply: now in ms, then per entry {id, fields, delivery count}. A room left empty is forgotten.
-- What was in the hands of a dead worker (listed count from 1) runs in isolation only: it moves on to the room of suspects.

local consumer, s, room, n = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local stream = KEYS[s]
local LOOK_AT = 2000 -- entries of the shared room looked at for ones that fit
local newest
if #ARGV > 4 then
  newest = {}
  for i = 5, #ARGV, 2 do newest[ARGV[i]] = tonumber(ARGV[i + 1]) end
end

local function fits(id)
  local fields = fields_of(stream, id)
  if not fields then return true end -- deleted: claiming it clears the list
  local known = newest[field(fields, 'type') or '']
  return known and (tonumber(field(fields, 'v') or '1') or 0) <= known
end

local ids = {}
for _, row in ipairs(redis.call('XPENDING', stream, GROUP, '-', '+', newest and LOOK_AT or n, room)) do
  if row[4] > 0 then
    park(s, row[1], SUSPECT, row[4])
  elseif #ids < n and (not newest or fits(row[1])) then
    ids[#ids + 1] = row[1]
  end
end

-- A claim without JUSTID looks for each entry a second time, which is the half of its cost: what stands together is read together.
local STRETCH = 50 -- a guess: read in vain at most, where others stand between
local reply = {now_ms()}
if #ids > 0 then
  for _, word in ipairs({'RETRYCOUNT', 1, 'JUSTID'}) do ids[#ids + 1] = word end
  ids = redis.call('XCLAIM', stream, GROUP, consumer, 0, unpack(ids))
  local is_dense = true
  for first = 1, #ids, STRETCH do
    local last, met = math.min(first + STRETCH - 1, #ids), {}
    if is_dense then
      local rows = redis.call('XRANGE', stream, ids[first], ids[last], 'COUNT', last - first + 1)
      for _, row in ipairs(rows) do met[row[1]] = row end
      is_dense = #rows > 0 and rows[#rows][1] == ids[last]
    end
    for at = first, last do
      local row = met[ids[at]] or {ids[at], fields_of(stream, ids[at])}
      row[3] = 1
      reply[#reply + 1] = row
    end
  end
end
if #redis.call('XPENDING', stream, GROUP, '-', '+', 1, room) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, room)
end
return reply
