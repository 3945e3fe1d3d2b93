#!lua flags=allow-oom
-- Hand out entries of a lot to one consumer, at most n, in one step: as two commands a second taker would steal a running job.
-- ARGV: consumer, stream, lot, n, how many bytes may come together (at least one entry does), how many one entry may have, then in
-- turn type and newest version this worker can run (only for the shared lot of unknown types).
-- Reply: now in ms, 1 if more is there that would have been too many bytes (else 0), then per entry {id, fields, delivery count}; of
-- one that is too large its bytes in the place of the fields. A lot left empty is forgotten.
-- What was in the hands of a dead worker (listed count from 1) runs in isolation only: it moves on to the lot of suspects.

local consumer, s, lot, n = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local most, most_of_one = tonumber(ARGV[5]), tonumber(ARGV[6])
local stream = KEYS[s]
local LOOK_AT = 2000 -- a guess: entries of the shared lot looked at for ones that fit
local newest
if #ARGV > 6 then
  newest = {}
  for i = 7, #ARGV, 2 do newest[ARGV[i]] = tonumber(ARGV[i + 1]) end
end

local function fits(id)
  local fields = fields_of(stream, id)
  if not fields then return true end -- deleted: claiming it clears the list
  local known = newest[field(fields, 'type') or '']
  return known and (tonumber(field(fields, 'v') or '1') or 0) <= known
end

local ids = {}
for _, row in ipairs(redis.call('XPENDING', stream, GROUP, '-', '+', newest and LOOK_AT or n, lot)) do
  if row[4] > 0 then
    park(s, row[1], SUSPECT, row[4])
  elseif #ids < n and (not newest or fits(row[1])) then
    ids[#ids + 1] = row[1]
  end
end

-- What is handed out is read before it is claimed, which tells how much it is; a claim without JUSTID would look for each entry again.
-- What stands together is read together.
local STRETCH = 50 -- a guess: read in vain at most, where others stand between
local reply, spent, at, step, is_dense = {now_ms(), 0}, 0, 1, 1, true
while at <= #ids and spent < most do
  local last, met = math.min(at + step - 1, #ids), {}
  if is_dense and last > at then
    local rows = redis.call('XRANGE', stream, ids[at], ids[last], 'COUNT', last - at + 1)
    for _, row in ipairs(rows) do met[row[1]] = row[2] end
    is_dense = #rows > 0 and rows[#rows][1] == ids[last]
  end
  while at <= last and spent < most do
    local fields = met[ids[at]] or fields_of(stream, ids[at])
    if fields then -- else deleted: claiming it clears the list
      local size = bytes_of(fields)
      if size > most_of_one then
        fields = size
      else
        spent = spent + size
      end
      reply[#reply + 1] = {ids[at], fields, 1}
    end
    at = at + 1
  end
  step = math.max(1, math.min(STRETCH, math.floor((most - spent) * (at - 1) / math.max(1, spent)))) -- as many as fit, if they are alike
end
if at > 1 then
  local claim = {'XCLAIM', stream, GROUP, consumer, 0, unpack(ids, 1, at - 1)}
  for _, word in ipairs({'RETRYCOUNT', 1, 'JUSTID'}) do claim[#claim + 1] = word end
  redis.call(unpack(claim))
end
if at <= #ids then reply[2] = 1 end
if #redis.call('XPENDING', stream, GROUP, '-', '+', 1, lot) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, lot)
end
return reply
