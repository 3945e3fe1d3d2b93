#!lua flags=allow-oom
-- Hand out suspects, entries that some worker held when it died, to the one consumer that has the ward.
-- ARGV: consumer, its lease in ms, for how long the youngest job that runs there has run in ms (-1: none runs), base of the isolation
-- time in ms, n (how many may start; -1 gives the ward up), then in turn type, newest version and timeout in ms of what may run there.
-- Reply: now in ms, a word, a time in ms, then per entry {stream, id, fields, delivery count, names of workers that died of it alone}:
-- 'none'  no suspect that may run there: the ward is given up     'busy'  another worker has the ward
-- 'wait'  the ward is yours, but what runs beside must first have run for this time, or have ended
-- 'run'   these are yours, for this time in isolation              'dead'  this one is yours, to be condemned
-- Up to n that are suspect for the first time, later ones alone. Alone, the name of the consumer is written down in the same step as
-- the lease: if it dies of this job, that is evidence.

local consumer, lease_ms, calm_ms, base_ms, n = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local LOOK_AT, MAX_ISOLATION_MS, STRIKES_OUT = 500, 60000, 3
local newest, timeouts = {}, {}
for i = 6, #ARGV, 3 do
  newest[ARGV[i]], timeouts[ARGV[i]] = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
end

local function leave(word)
  if redis.pcall('GET', WARD) == consumer then redis.call('DEL', WARD) end
  return {now_ms(), word, 0}
end
if n < 0 then return leave('none') end

-- A stream whose key is of another type has no suspects, and must not keep those of the others.
local function suspects_on(s, n)
  return redis.pcall('XPENDING', KEYS[s], GROUP, '-', '+', n, SUSPECT)
end

local function forget_room(s)
  if #suspects_on(s, 1) == 0 then redis.pcall('XGROUP', 'DELCONSUMER', KEYS[s], GROUP, SUSPECT) end
end

-- Strikes whose entry is gone (a stream was deleted, or an unfenced XACK) concern nobody.
local function sweep_strikes()
  local page = redis.pcall('HSCAN', STRIKES, '0', 'COUNT', 20)
  for i = 1, #(page[2] or {}), 2 do
    local name, id = string.match(page[2][i], '^(%a+)/(%d+%-%d+)$')
    local is_there = false
    for s = 1, 4 do
      if STREAMS[s] == name then is_there = #redis.pcall('XPENDING', KEYS[s], GROUP, id, id, 1) > 0 end
    end
    if not is_there then redis.call('HDEL', STRIKES, page[2][i]) end
  end
end

local listed = {}
for s = 1, 4 do
  for position, row in ipairs(suspects_on(s, LOOK_AT)) do
    listed[#listed + 1] = {s, row[1], math.max(1, row[4]), s * LOOK_AT + position}
  end
end
table.sort(listed, function(a, b)
  if a[3] ~= b[3] then return a[3] < b[3] end
  return a[4] < b[4]
end)

local chosen, isolation_ms, is_condemned = {}, 0, false
for _, suspect in ipairs(listed) do
  local s, id, count = suspect[1], suspect[2], suspect[3]
  if #chosen > 0 and (count > 1 or #chosen >= n) then break end
  local fields = fields_of(KEYS[s], id)
  local kind = fields and field(fields, 'type')
  local known = kind and newest[kind]
  if not fields then
    redis.call('XACK', KEYS[s], GROUP, id)
  elseif not kind or (known and (tonumber(field(fields, 'v') or '1') or 0) <= known) then -- without a type, anybody can condemn it
    local names = redis.pcall('HGET', STRIKES, stands_at(s, id))
    names = type(names) == 'string' and names or ''
    local _, strikes = string.gsub(names, '%S+', '')
    chosen[#chosen + 1] = {s, id, fields, count + 1, names}
    is_condemned = count > 1 and strikes >= STRIKES_OUT
    isolation_ms = math.max(isolation_ms, math.min(base_ms * 2 ^ (count - 1), MAX_ISOLATION_MS, timeouts[kind or ''] or 0))
    if count > 1 or n == 0 then break end
  end
end
if #chosen == 0 then
  sweep_strikes()
  for s = 1, 4 do forget_room(s) end
  return leave('none')
end

local owner = redis.pcall('GET', WARD)
if owner == consumer then
  redis.call('PEXPIRE', WARD, lease_ms)
elseif type(redis.pcall('SET', WARD, consumer, 'NX', 'PX', lease_ms)) ~= 'table' then
  return {now_ms(), 'busy', 0}
end
if not is_condemned and (n == 0 or (calm_ms >= 0 and calm_ms < isolation_ms)) then
  return {now_ms(), 'wait', isolation_ms}
end

if #chosen == 1 and not is_condemned then
  local s, id, _, _, names = unpack(chosen[1])
  redis.pcall('HSET', STRIKES, stands_at(s, id), names == '' and consumer or names .. ' ' .. consumer)
end
local reply = {now_ms(), is_condemned and 'dead' or 'run', isolation_ms}
for _, suspect in ipairs(chosen) do
  redis.call('XCLAIM', KEYS[suspect[1]], GROUP, consumer, 0, suspect[2], 'RETRYCOUNT', suspect[4], 'JUSTID')
  reply[#reply + 1] = suspect
end
for s = 1, 4 do forget_room(s) end
return reply
