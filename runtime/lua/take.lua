#!lua flags=allow-oom
-- Hand out entries of a room to one consumer, at most n, in one step: as two commands a second taker would steal a running job.
-- ARGV: consumer, stream, room, n, then the types this worker can run (only for the shared room of unknown types).
-- Reply: now in ms, then per entry {id, fields, delivery count}. A room left empty is forgotten.

local consumer, s, room, n = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local stream = KEYS[s]
local wanted
if #ARGV > 4 then
  wanted = {}
  for i = 5, #ARGV do wanted[ARGV[i]] = true end
end

local ids, counts = {}, {}
for _, row in ipairs(redis.call('XPENDING', stream, GROUP, '-', '+', n, room)) do
  local fits = true
  if wanted then
    local fields = fields_of(stream, row[1])
    fits = not fields or wanted[field(fields, 'type')]
  end
  if fits then
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
