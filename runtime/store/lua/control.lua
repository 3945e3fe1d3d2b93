#!lua flags=allow-oom
-- What people order at run time, in the hash `control`; the worker's parts read it (runtime/rules.py). All operations or none.
-- ARGV: by, reason, then per operation: verb, field, value.
--   set    the field has this value             del    the field goes; the value is ''
--   merge  the field `limit:<type>`, a JSON object, has these members instead of those it had; one that is false goes, and with the
--          last one the field
--   pause  the field `pause:<what>` says that nothing of it starts for so many ms, or until it is resumed where that is 0
--   later  the same, but a pause that lasts as long already stays
--   put    the schedule `cron:<name>` is what stands behind two words of the value: the revision that it is made from ('0' where there
--          is none; another one stands by now: all is refused), and what of it changes, for the audit. Its revision is the new v
--   drop   the schedule goes, and what it has fired; the value is the revision that it is made from
-- Reply: v, then per operation 1 changed, 0 nothing to do. An order of which nothing changes writes nothing.
-- Order: XADD audit, which alone may fail; the fields; v, which tells everybody to look. Of a schedule that is put no tick of before
-- is due: what was decided last is now.

local MAX_OPERATIONS = 500
local MAX_RULES = 2000  -- a guess: every worker reads all of them after a change
local MAX_BYTES = 4096
local MAX_SCHEDULES = 1000  -- a guess, as the next: every worker reads all of them after a change
local MAX_SCHEDULE_BYTES = 16384
local REPEAT_MS = 10000  -- a guess: an order that comes again so soon is one whose reply was lost

local by, reason = ARGV[1], ARGV[2]
local now = now_ms()
local IS_KIND = {pause = true, limit = true, worker = true, op = true, cron = true}
local OF_SCHEDULES = {put = true, drop = true}

local function schedule_in(field)
  return string.match(field, '^cron:(.+)$')
end

-- The values of fields as they were, and as they will be; false is none.
local before, after = {}, {}
local function value_of(field)
  if before[field] == nil then
    local name = schedule_in(field)
    before[field] = redis.call('HGET', name and CRON or CONTROL, name or field)
    after[field] = before[field]
  end
  return after[field]
end

-- Until when and since when a pause holds, and what else it says.
local function pause_in(text)
  local ends, since, rest = string.match(text or '', '^(%d+) (%d+) (.*)$')
  return tonumber(ends), tonumber(since), rest
end

local verbs, is_extension, moved = {}, false, nil

function verbs.set(field, value)
  return value
end

function verbs.del()
  return false
end

-- The revision of what stands of a schedule, '0' where nothing that can be read does, and the rest.
local function revision_in(text)
  local revision, rest = string.match(text or '', '^(%d+) (.*)$')
  return revision or '0', rest
end

function verbs.put(field, value)
  local old = value_of(field)
  local expected, json = string.match(value, '^(%d+) %S+ (.*)$')
  local revision, stands = revision_in(old)
  if stands == json then return old end
  if revision ~= expected then moved = field end
  return json
end

function verbs.drop(field, value)
  local old = value_of(field)
  if old and revision_in(old) ~= value then moved = field end
  return false
end

function verbs.merge(field, value)
  local members, names, told = {}, {}, {}
  for _, text in ipairs({value_of(field) or '{}', value}) do
    local ok, object = pcall(cjson.decode, text)  -- what stands there may be a stranger's
    for name, member in pairs(ok and type(object) == 'table' and object or {}) do
      if type(name) == 'string' then members[name] = member end
    end
  end
  for name, member in pairs(members) do
    if member ~= false then names[#names + 1] = name end
  end
  table.sort(names)  -- the same members are the same text
  for i, name in ipairs(names) do told[i] = cjson.encode(name) .. ':' .. cjson.encode(members[name]) end
  return #told > 0 and '{' .. string.gsub(table.concat(told, ','), '\\/', '/') .. '}'
end

local function paused(for_ms)
  return ms(for_ms == 0 and 0 or now + for_ms) .. ' ' .. ms(now) .. ' ' .. by .. ' ' .. reason
end

function verbs.pause(field, value)
  local for_ms, old = tonumber(value), value_of(field)
  local ends, since, rest = pause_in(old)
  local is_open = ends == 0 and for_ms == 0
  local is_repeat = ends and ends > now and ends - since == for_ms and since > now - REPEAT_MS
  return (is_open or is_repeat) and rest == by .. ' ' .. reason and old or paused(for_ms)
end

function verbs.later(field, value)
  local for_ms, old = tonumber(value), value_of(field)
  local ends = pause_in(old)
  if ends == 0 or (ends and for_ms > 0 and ends >= now + for_ms) then return old end
  is_extension = ends and ends > now
  return paused(for_ms)
end

-- What is wrong with an operation, or nil.
local function trouble_with(verb, field, value)
  local kind = string.match(field, '^(%l+):.')
  local is_pause = verb == 'pause' or verb == 'later'
  if not verbs[verb] then return 'no verb ' .. verb end
  local most = kind == 'cron' and MAX_SCHEDULE_BYTES or MAX_BYTES
  if #field > MAX_BYTES or #value > most then return 'a field and its value must be at most ' .. most .. ' bytes' end
  if not IS_KIND[kind] or (verb ~= 'del' and is_pause ~= (kind == 'pause')) then return verb .. ': no such field: ' .. field end
  if (kind == 'cron') ~= (OF_SCHEDULES[verb] or false) then return verb .. ': no such field: ' .. field end
  if (verb == 'put' and not string.match(value, '^%d+ %S+ {')) or (verb == 'drop' and not string.match(value, '^%d+$')) then
    return verb .. ' ' .. field .. ': must be a revision, what changes, and an object'
  end
  if verb == 'merge' then
    local ok, object = pcall(cjson.decode, value)
    if kind ~= 'limit' or not ok or type(object) ~= 'table' then return 'merge ' .. field .. ': must be a limit and an object' end
  end
  if is_pause and not (string.match(value, '^%d+$') and #value < 16 and now + value <= MAX_MS) then
    return verb .. ' ' .. field .. ': must be for a number of ms'
  end
end

local function trouble_with_all()
  local trouble = trouble_with_place(CONTROL, 'hash') or trouble_with_place(AUDIT, 'stream')
  if trouble then return trouble end
  if not string.match(by, '^%S+$') then return 'BADORDER by whom must be one word' end
  if #by + #reason > MAX_BYTES - 64 then return 'BADORDER by and reason must be at most ' .. MAX_BYTES - 64 .. ' bytes' end
  if #ARGV < 5 or #ARGV % 3 ~= 2 or #ARGV > 2 + 3 * MAX_OPERATIONS then
    return 'BADORDER must be 1 to ' .. MAX_OPERATIONS .. ' operations of three words'
  end
  for i = 3, #ARGV, 3 do
    trouble = trouble_with(ARGV[i], ARGV[i + 1], ARGV[i + 2])
    if trouble then return 'BADORDER ' .. trouble end
    trouble = schedule_in(ARGV[i + 1]) and (trouble_with_place(CRON, 'hash') or trouble_with_place(CRON_STATE, 'hash'))
    if trouble then return trouble end
  end
end

local trouble = trouble_with_all()
if trouble then return redis.error_reply(trouble) end

local v = redis.call('HGET', CONTROL, 'v')
if v and not (string.match(v, '^%d+$') and #v < 16) then v = ms(now) end  -- a stranger's: what differs is all that counts
local answers, what, is_told = {tonumber(v or '0')}, {}, false
for i = 3, #ARGV, 3 do
  local verb, field, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local old = value_of(field)
  is_extension = false
  after[field] = verbs[verb](field, value)
  answers[#answers + 1] = after[field] == old and 0 or 1
  if after[field] ~= old then
    if OF_SCHEDULES[verb] then value = string.match(value, '^%d+ (%S+)') or '' end  -- no payload goes to the audit
    what[#what + 1] = verb .. ' ' .. field .. (value == '' and '' or ' ' .. value)
    is_told = is_told or not is_extension
  end
end
if moved then return redis.error_reply('STALE ' .. moved .. ' was changed meanwhile') end
if #what == 0 then return answers end

local v_now = ms(answers[1] + 1)
local hashes = {[CONTROL] = {most = MAX_RULES, grown = 0, sets = {}, gone = {}}, [CRON] = {most = MAX_SCHEDULES, grown = 0, sets = {}, gone = {}}}
for field, value in pairs(after) do
  if value ~= before[field] then
    local name = schedule_in(field)
    local hash = hashes[name and CRON or CONTROL]
    hash.grown = hash.grown + (before[field] and 0 or 1) - (value and 0 or 1)
    if value then
      table.insert(hash.sets, name or field)
      table.insert(hash.sets, name and v_now .. ' ' .. value or value)
    else
      table.insert(hash.gone, name or field)
    end
  end
end
for key, hash in pairs(hashes) do
  if hash.grown > 0 and redis.call('HLEN', key) + hash.grown > hash.most then
    return redis.error_reply('FULL ' .. key .. ' must have at most ' .. hash.most .. ' fields')
  end
end

-- Where jobs only go on pausing their type, as each of many may, this would push out what people did.
if is_told then write_audit(by, reason, what) end
for key, hash in pairs(hashes) do
  if #hash.sets > 0 then redis.call('HSET', key, unpack(hash.sets)) end
  if #hash.gone > 0 then redis.call('HDEL', key, unpack(hash.gone)) end
end
for i = 1, #hashes[CRON].sets, 2 do
  local name = hashes[CRON].sets[i]
  local last, rest = string.match(redis.call('HGET', CRON_STATE, name) or '', '^(%d+)( .*)$')
  if last and #last < 16 and tonumber(last) < now then redis.call('HSET', CRON_STATE, name, ms(now) .. rest) end
end
if #hashes[CRON].gone > 0 then redis.call('HDEL', CRON_STATE, unpack(hashes[CRON].gone)) end
redis.call('HSET', CONTROL, 'v', v_now)
answers[1] = answers[1] + 1
return answers
