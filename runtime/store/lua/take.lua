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

local rows, at = read_entries(stream, ids, most, most_of_one)
local reply = {now_ms(), 0}
for _, row in ipairs(rows) do
  if row[2] then reply[#reply + 1] = row end
end
hand_out(s, ids, at - 1, consumer)
if at <= #ids then reply[2] = 1 end
forget_if_empty(s, lot)
return reply
