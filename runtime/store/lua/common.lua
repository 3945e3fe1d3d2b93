-- The functions that all scripts share. The store puts them before each script, and before them the constants, from Python: GROUP,
-- STREAMS, FREE, SUSPECT, GATE, OVERFLOW, NOTES, MAX_FIELDS, MAX_LEASE_MS, MAX_MS, KEY_LIFE_MS, MAX_EVENTS, MAX_DEATHS, EVENTS_LIFE_MS, PREFIX,
-- and the keys DUE, MSG, DEAD, WORKERS, ROWS, STRIKES, ISOLATIONS, CONTROL, AUDIT, CRON, CRON_STATE, CANCELS. KEYS: first the streams, then those in this order.
-- Streams are numbered from 1 here. Ids are strings, times are milliseconds, payloads are never parsed.

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Until when a worker lives, by its last beat; a row may be a stranger's. `workers_of` reads it so too.
local function stands_until(consumer)
  local score = tonumber(redis.call('ZSCORE', WORKERS, consumer) or '0')
  return math.floor(math.max(0, math.min(score, MAX_MS)))
end

local function ms(number)
  return string.format('%.0f', number)
end

-- The first of these texts that is a time, and not ahead of now; else now. Entry ids may be a sender's choice, up to 2^64 - 1 ms.
local function first_time(now, ...)
  for i = 1, select('#', ...) do
    local text = select(i, ...)
    if text and string.match(text, '^%d+$') and tonumber(text) <= now then return text end
  end
  return ms(now)
end

-- An empty list for each stream.
local function lists()
  local made = {}
  for s = 1, #STREAMS do made[s] = {} end
  return made
end

-- What is known of entries, by stream: the delivery count with which the caller holds it, or false once this call moved it.
local known = lists()

-- The fence: does `consumer` still hold this entry with this delivery count?
local function holds(s, id, consumer, count)
  local seen = known[s][id]
  if seen ~= nil then return seen == count end
  local row = redis.call('XPENDING', KEYS[s], GROUP, id, id, 1)[1]
  return row and row[2] == consumer and row[4] == count
end

-- Leases of one stream that come in numbers are mostly the oldest that their consumer has: its list is read once, for a third of what
-- asking for each would take. Those that are not met there are asked for one by one all the same.
local function look_up(first, width, consumer)
  local asked = {}
  for i = first, #ARGV, width do
    local s = tonumber(ARGV[i])
    asked[s] = (asked[s] or 0) + 1
  end
  for s in pairs(asked) do
    local rows = asked[s] < 16 and {} or redis.pcall('XPENDING', KEYS[s], GROUP, '-', '+', asked[s] + 100, consumer)
    for _, row in ipairs(rows) do known[s][row[1]] = row[4] end
  end
end

local function fields_of(stream, id)
  local entry = redis.call('XRANGE', stream, id, id)[1]
  return entry and entry[2]
end

-- The value of a field in a flat list; the last one wins, as in the codec.
local function field(fields, name)
  local value
  for i = 1, #fields, 2 do
    if fields[i] == name then value = fields[i + 1] end
  end
  return value
end

-- A flat list without the fields of this name.
local function without(fields, name)
  if not field(fields, name) then return fields end
  local rest, size = {}, 0
  for i = 1, #fields, 2 do
    if fields[i] ~= name then
      rest[size + 1], rest[size + 2] = fields[i], fields[i + 1]
      size = size + 2
    end
  end
  return rest
end

-- The fields of a flat list by their names; the last one wins. For where many are asked for: a script is not to walk the list for each.
local function by_name(fields)
  local found = {}
  for i = 1, #fields, 2 do found[fields[i]] = fields[i + 1] end
  return found
end

-- Where a stream is set aside that an id far ahead has closed, until `reopen` has moved what is in it.
local function closed_name(s)
  return KEYS[s] .. ':closed'
end

-- The time in the last id that a stream has ever had; 0 where it is none.
local function last_ms_of(stream)
  local info = redis.pcall('XINFO', 'STREAM', stream)
  for i = 1, info.err and 0 or #info, 2 do
    if info[i] == 'last-generated-id' then return tonumber(string.match(info[i + 1], '^%d+')) end
  end
  return 0
end

local function bytes_of(fields)
  local size = 0
  for i = 1, #fields do size = size + #fields[i] end
  return size
end

-- Where an entry stands, as `strikes` and a letter's `dead_from` name it.
local function stands_at(s, id)
  return STREAMS[s] .. '/' .. id
end

-- The names of the workers that died of this entry while it ran alone. A broken `strikes` must not stop a move.
local function strikes_of(s, id)
  local names = redis.pcall('HGET', STRIKES, stands_at(s, id))
  return type(names) == 'string' and names or ''
end

local function strike(s, id, name)
  local names = strikes_of(s, id)
  for each in string.gmatch(names, '%S+') do
    if each == name then return end
  end
  redis.pcall('HSET', STRIKES, stands_at(s, id), names == '' and name or names .. ' ' .. name)
end

-- `name` lives, whatever happened to this entry: it is no witness against it.
local function acquit(s, id, name)
  local names = strikes_of(s, id)
  if names == '' then return end
  local rest = {}
  for each in string.gmatch(names, '%S+') do
    if each ~= name then rest[#rest + 1] = each end
  end
  if #rest > 0 then
    redis.pcall('HSET', STRIKES, stands_at(s, id), table.concat(rest, ' '))
  else
    redis.pcall('HDEL', STRIKES, stands_at(s, id))
  end
end

-- Entries leave their streams at the end of a call, all at once: one by one, it would be half of the call's time. Only those that were
-- handed out again can have strikes.
local leaving, with_strikes = lists(), {}
local function remove(s, id, count)
  table.insert(leaving[s], id)
  known[s][id] = false
  if count > 1 then table.insert(with_strikes, stands_at(s, id)) end
end
local function leave(s)
  redis.call('XACK', KEYS[s], GROUP, unpack(leaving[s]))
  redis.call('XDEL', KEYS[s], unpack(leaving[s]))
end

-- Read entries until they are `most` bytes together, at least one: what is handed out is read before it is claimed, which tells how much
-- it is, and a claim without JUSTID would look for each again. What stands together is read together. Returns per entry {id, fields, 1}
-- (the count with which it is handed out), with its bytes in place of the fields of one that has more than `most_of_one`, false where it
-- was deleted; the position of the first that was not read; and how many bytes it is.
local function read_entries(stream, ids, most, most_of_one)
  local STRETCH = 50 -- a guess: read in vain at most, where others stand between
  local rows, spent, at, step, is_dense = {}, 0, 1, 1, true
  while at <= #ids and spent < most do
    local last, met = math.min(at + step - 1, #ids), {}
    if is_dense and last > at then
      local found = redis.call('XRANGE', stream, ids[at], ids[last], 'COUNT', last - at + 1)
      for _, row in ipairs(found) do met[row[1]] = row[2] end
      is_dense = #found > 0 and found[#found][1] == ids[last]
    end
    while at <= last and spent < most do
      local fields = met[ids[at]] or fields_of(stream, ids[at]) or false
      if fields then
        local size = bytes_of(fields)
        if size > most_of_one then
          fields = size
        else
          spent = spent + size
        end
      end
      rows[at] = {ids[at], fields, 1}
      at = at + 1
    end
    step = math.max(1, math.min(STRETCH, math.floor((most - spent) * (at - 1) / math.max(1, spent)))) -- as many as fit, if they are alike
  end
  return rows, at, spent
end

-- Lease the first `n` of these entries to a consumer, delivered once; one that was deleted leaves its lot by this.
local function hand_out(s, ids, n, consumer)
  if n == 0 then return end
  local claim = {'XCLAIM', KEYS[s], GROUP, consumer, 0, unpack(ids, 1, n)}
  for _, word in ipairs({'RETRYCOUNT', 1, 'JUSTID'}) do claim[#claim + 1] = word end
  redis.call(unpack(claim))
end

-- A lot left empty is forgotten: as a consumer without entries it would stay, and be listed nowhere.
local function forget_if_empty(s, lot)
  if #redis.call('XPENDING', KEYS[s], GROUP, '-', '+', 1, lot) > 0 then return false end
  redis.call('XGROUP', 'DELCONSUMER', KEYS[s], GROUP, lot)
  return true
end

-- The record of a delayed job as a flat list {'stream', name, field, value, ...}; nil when it is nothing of that kind.
local function unpack_record(packed)
  local ok, list = pcall(cmsgpack.unpack, packed)
  if not ok or type(list) ~= 'table' or #list < 2 or #list % 2 ~= 0 or list[1] ~= 'stream' then return nil end
  local size = 0
  for key, value in pairs(list) do
    if type(key) ~= 'number' or type(value) ~= 'string' then return nil end
    size = size + 1
  end
  return size == #list and list or nil
end

-- The fields of the job at this place ('high 12-0' or 'due member'), if it carries this key.
local function owner_at(place, key)
  local where, id = string.match(place, '^(%S+) (.+)$')
  local fields
  if where == 'due' then
    local packed = redis.call('HGET', MSG, id)
    fields = packed and unpack_record(packed)
  else
    for i = 1, #STREAMS do
      if STREAMS[i] == where then fields = fields_of(KEYS[i], id) end
    end
  end
  return fields and field(fields, 'key') == key and fields
end

local function mark_of(key)
  return PREFIX .. 'seen:k:' .. key
end

-- The place that the mark of a key names, or false. What a stranger has put there is none.
local function place_of_owner(key)
  local place = redis.pcall('GET', mark_of(key))
  return type(place) == 'string' and place
end

-- May a job with this key live at `place`? False when another live job owns the key.
local function key_is_free(key, place)
  local owner = place_of_owner(key)
  return not owner or owner == place or not owner_at(owner, key)
end

-- For how long a mark is kept, as text: a job that waits for a time (ms; none or '' for one that may run now) is no less alive.
local function life_of(at)
  local wait = tonumber(at or '')
  return wait and ms(KEY_LIFE_MS + math.max(0, wait - now_ms())) or KEY_LIFE_MS
end

local function own_key(key, place, at)
  redis.call('SET', mark_of(key), place, 'PX', life_of(at))
end

-- A keyed job moved: its mark follows, if the mark still names the place it left. Where the mark cannot be read or written (memory,
-- a wrong type), the move goes on all the same: the mark then names a place without this job, and is void.
local function move_key(fields, from, to, at)
  local key = field(fields, 'key')
  if key and place_of_owner(key) == from then redis.pcall('SET', mark_of(key), to, 'PX', life_of(at)) end
end

-- A keyed job ended: its mark goes, if it still names this place; it would be void, and stay for days.
local function free_key(key, place)
  if key and key ~= '' and place_of_owner(key) == place then redis.pcall('DEL', mark_of(key)) end
end

-- XADD of a flat list that may be longer than unpack bears: then as one field `raw`, packed.
local function add_letter(fields, notes)
  if #fields > 2 * MAX_FIELDS then fields = {'raw', cmsgpack.pack(fields)} end
  for i = 1, #notes do fields[#fields + 1] = notes[i] end
  return redis.call('XADD', DEAD, '*', unpack(fields))
end

-- Did people ask to cancel this entry while a worker held it? Whether anything was asked at all is looked up once a call.
local has_cancels
local function is_cancelled(s, id)
  if has_cancels == nil then has_cancels = redis.pcall('EXISTS', CANCELS) == 1 end
  return has_cancels and type(redis.pcall('ZSCORE', CANCELS, stands_at(s, id))) == 'string'
end

-- Who asked to cancel this place while a worker had it, and why. Kept beside the mark, and goes with it, or by itself.
local function asked_by(place)
  return PREFIX .. 'cancels:' .. place
end

-- What the letter says of a job that was cancelled while a worker had it.
local function why_cancelled(place)
  local by = redis.pcall('GET', asked_by(place))
  return 'cancelled' .. (type(by) == 'string' and ' by ' .. by or '') .. ', while a worker had it'
end

-- The letter of a job that was cancelled. Who waits for its result looks at the letters when it is told the id.
local function add_cancelled(fields, default_id, why, from)
  local failed, id = string.match(field(fields, 'a') or '', '^%d+$') or '0', field(fields, 'id')
  local notes = {
    'dead_reason', 'cancelled', 'dead_error', why, 'dead_stack', '', 'dead_attempts', failed, 'dead_from', from, 'dead_at', ms(now_ms()),
  }
  if not id then
    table.insert(notes, 1, default_id)
    table.insert(notes, 1, 'id')
  end
  add_letter(fields, notes)
  redis.pcall('PUBLISH', PREFIX .. 'results', id or default_id)
end

-- A cancelled entry leaves its stream for the dead letters, whoever has it, with all that names it: the mark of its key, its strikes, the
-- mark that asked for this; `why` where it is cancelled now. Returns whether it was there.
local function bury(s, id, why)
  why = why or why_cancelled(stands_at(s, id))
  local fields, place = fields_of(KEYS[s], id), STREAMS[s] .. ' ' .. id
  if fields then
    local key = field(fields, 'key') -- add_letter may write into the list
    add_cancelled(fields, STREAMS[s] .. '-' .. id, why, stands_at(s, id))
    free_key(key, place)
  end
  redis.call('XACK', KEYS[s], GROUP, id)
  redis.call('XDEL', KEYS[s], id)
  redis.pcall('HDEL', STRIKES, stands_at(s, id))
  redis.pcall('ZREM', CANCELS, stands_at(s, id))
  redis.pcall('DEL', asked_by(stands_at(s, id)))
  known[s][id] = false
  return fields ~= nil
end

-- Into a lot, where it is listed with this count: from 1 on it is a suspect, which ordinary takes leave alone. What was cancelled while
-- a worker held it goes no further: nobody would start it with the mark in mind.
local function park(s, id, lot, count)
  if is_cancelled(s, id) then return bury(s, id) end
  if lot == FREE and count > 0 then lot = SUSPECT end
  redis.call('XCLAIM', KEYS[s], GROUP, lot, 0, id, 'RETRYCOUNT', count, 'JUSTID')
  known[s][id] = false
end

local function text_of(failure)
  return type(failure) == 'table' and failure.err or tostring(failure)
end

-- Run `move` for one item after the other; each begins with its stream. Its answer (1 moved, 0 refused) or its error concerns that
-- item alone. Then `write`, where given, writes down all that moved; where it fails, nothing moves. What moved leaves its stream last;
-- where that fails, it is in both places, and its answer is that error.
local function each(first, width, move, write)
  local answers = {}
  for i = first, #ARGV, width do
    local ok, answer = pcall(move, i)
    answers[#answers + 1] = ok and answer or text_of(answer)
  end
  local is_written, refusal = true, nil
  if write then is_written, refusal = pcall(write, answers) end
  if not is_written then
    for at = 1, #answers do
      if answers[at] == 1 then answers[at] = text_of(refusal) end
    end
    return answers
  end
  for s = 1, #STREAMS do
    local ok, failure = true, nil
    if #leaving[s] > 0 then ok, failure = pcall(leave, s) end
    for at = 1, ok and 0 or #answers do
      if ARGV[first + (at - 1) * width] == tostring(s) and answers[at] ~= 0 then answers[at] = text_of(failure) end
    end
  end
  if #with_strikes > 0 then redis.pcall('HDEL', STRIKES, unpack(with_strikes)) end
  return answers
end
