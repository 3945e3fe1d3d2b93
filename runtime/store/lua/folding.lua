-- Messages that wait for a time, and debounce: of those with one key the last runs. Needs common.lua.

-- A guess: whoever asks again and again puts a job off for ten times its own wait at most, since it was first asked for.
local MOST_WAITS = 10

-- Does this message put off the job of its key that waits? One with a time does, unless it asks for the first to stay; also one that
-- comes after its time, over an outage or behind others: dropped, what changed last would be lost.
local function puts_off(due, fields)
  return tonumber(due) ~= nil and field(fields, 'keep') ~= 'first'
end

-- A record of these fields, for this stream, but with an id and a time of birth of its own; `without` names further ones to leave out.
local function record_of(s, fields, id, first, without)
  local record = {'stream', STREAMS[s]}
  if id then record[3], record[4] = 'id', id end
  local size = #record
  for i = 1, #fields, 2 do
    local name = fields[i]
    if name ~= 'id' and name ~= 'at' and name ~= 'first_at' and not without[name] then
      record[size + 1], record[size + 2] = name, fields[i + 1]
      size = size + 2
    end
  end
  record[size + 1], record[size + 2] = 'first_at', first
  return record
end

local function has_begun(fields)
  return field(fields, 'a') or field(fields, 'snoozed_at')
end

-- Let a message be what the job of its key that waits will do, at this message's time: it keeps its id, member and time of birth.
-- Returns whether that job waits: in `due`, and has never run. The time is written first: where that fails, nothing has changed.
local OF_A_RUN = {a = true, snoozed_at = true, tried = true, e = true, ['x-origin'] = true}
local function fold(place, owner, s, due, fields, key, now)
  local member = string.match(place, '^due (.+)$')
  if not member or has_begun(owner) then return false end
  local first = first_time(now, field(owner, 'first_at'))
  local at = ms(math.min(due, first + MOST_WAITS * math.max(0, due - now)))
  redis.call('ZADD', DUE, at, member)
  redis.call('HSET', MSG, member, cmsgpack.pack(record_of(s, fields, field(owner, 'id'), first, OF_A_RUN)))
  pcall(own_key, key, place, at) -- it is folded, whatever becomes of its mark
  return true
end

-- When the key of a job was last taken by a newer one that does not wait for it. It may be met, or tried again, when that has run.
local function over_of(key)
  return PREFIX .. 'seen:o:' .. key
end

-- The keys that this call has taken so, and the places that had them.
local overtaken = {}

-- Is there no need for this message as a job of its own? Another job with its key lives, or it was folded into that one. Behind one
-- that has begun it waits as a job of its own: dropped, what changed last would be lost. `own` is a place that does not count. Returns
-- the other job's id as well, and whether it was folded.
local function is_spare(s, due, fields, key, own, now)
  local place = place_of_owner(key)
  local owner = place and place ~= own and owner_at(place, key)
  if not owner then return false end
  local id = field(owner, 'id') or string.gsub(place, '^due ', ''):gsub(' ', '-')
  -- What one of another type does is something else, and cannot wait in its place.
  if not puts_off(due, fields) or field(owner, 'type') ~= field(fields, 'type') then return true, id end
  if fold(place, owner, s, due, fields, key, now) then return true, id, true end
  redis.call('SET', over_of(key), ms(now), 'PX', life_of(due))
  overtaken[#overtaken + 1] = {key = key, place = place}
  return false
end

-- Store a message until its time. Its member is its id; where that is taken, with `other` behind it. Returns its place.
local function delay(s, due, fields, id, first, other)
  local member = id
  if redis.call('HEXISTS', MSG, member) == 1 then member = id .. '#' .. other end
  redis.call('HSET', MSG, member, cmsgpack.pack(record_of(s, fields, id, first, {})))
  local dated = redis.pcall('ZADD', DUE, due, member)
  if type(dated) == 'table' then
    redis.call('HDEL', MSG, member) -- a message without a time would run at once
    error(dated)
  end
  return 'due ' .. member
end
