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

local ids, counts = {}, {}
for _, row in ipairs(redis.call('XPENDING', stream, GROUP, '-', '+', newest and LOOK_AT or n, room)) do
  if row[4] > 0 then
    park(s, row[1], SUSPECT, row[4])
  elseif #ids < n and (not newest or fits(row[1])) then
    ids[#ids + 1] = row[1]
    counts[row[1]] = row[4] + 1
  end
end

local reply = {now_ms()}
if #ids > 0 then
  for _, entry in ipairs(redis.call('XCLAIM', stream, GROUP, consumer, 0, unpack(ids))) do
    reply[#reply + 1] = {entry[1], entry[2], counts[entry[1]]}
  end
end
if #redis.call('XPENDING', stream, GROUP, '-', '+', 1, room) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, room)
end
return reply
