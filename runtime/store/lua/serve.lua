#!lua flags=allow-oom
-- Hand out what waits in the lots of one gated type, as far as its permits and tokens go, and take back permits that are free again.
-- ARGV: consumer, how many may come, how many of them from other streams than the first, how many bytes may come together (at least one
-- entry does), how many one entry may have, the type, its limit, interval in µs and burst (0: no bound), the same three for each group;
-- then three lists, each with its length before it: places that are free again (group, place), places to note (group, place), lots
-- (stream, lot, group).
-- Reply: now in ms, how it stands with the type, and with each lot, then per entry {stream, id, fields, 1}; of one that is too large its
-- bytes in place of the fields. How it stands: 0 more may come at once, -1 short of permits, -2 (of a lot) empty and forgotten, else short
-- of tokens, and in how many ms the next one comes.
-- A permit is a place among `permits:<gate>`, scored with when it was last seen pending with a worker; no clock frees it. A rate is the
-- theoretical arrival time (TAT) of the next job in µs, as GCRA has it.
-- What is past its `exp`, too large or deleted is handed out free of charge: it does not start.

local consumer, n, n_others = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local most, most_of_one, kind = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local HEAL, SEEN_MS = 20, 1000 -- guesses: permits that a full gate looks at, unless it has seen them within this time
local LOOK_AT = 500 -- a guess: entries looked at, a millisecond of the server
local SHARED = '~o:' -- lots where the entries of many groups wait
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

local function bounds(at)
  return {limit = tonumber(ARGV[at]), interval = tonumber(ARGV[at + 1]), burst = tonumber(ARGV[at + 2])}
end
local of_type, of_group = bounds(7), bounds(10)

-- Its permits would be wrong if it ran: an entry that is gone, or waits in a lot.
local function is_running(place)
  local name, id = string.match(place, '^(%a+)/(%d+%-%d+)$')
  for s = 1, #STREAMS do
    if STREAMS[s] == name then
      local row = redis.pcall('XPENDING', KEYS[s], GROUP, id, id, 1)[1]
      return row and string.sub(row[2], 1, 1) ~= '~'
    end
  end
end

local function permits_of(name)
  return PREFIX .. 'permits:' .. name
end
local function rate_of(name)
  return PREFIX .. 'rate:' .. name
end

local function note(key, places)
  for _, place in ipairs(places) do redis.call('ZADD', key, ms(now), place) end
  redis.call('PEXPIRE', key, KEY_LIFE_MS)
end

-- A full gate looks whether its permits are still in use: those of dead workers, of retries and of a restored server come back so.
local function free_permits(name, limit)
  if limit == 0 then return math.huge end
  local key = permits_of(name)
  local free = limit - redis.call('ZCARD', key)
  if free > 0 then return free end
  local old = redis.call('ZRANGE', key, '-inf', ms(now - SEEN_MS), 'BYSCORE', 'LIMIT', 0, HEAL)
  local ahead = redis.call('ZRANGE', key, '(' .. ms(now + SEEN_MS), '+inf', 'BYSCORE', 'LIMIT', 0, HEAL) -- the clock went back
  local seen = {}
  for _, places in ipairs({old, ahead}) do
    for _, place in ipairs(places) do
      if is_running(place) then
        seen[#seen + 1] = place
      else
        redis.call('ZREM', key, place)
      end
    end
  end
  if #seen > 0 then note(key, seen) end
  return limit - redis.call('ZCARD', key)
end

local function write_rate(name, tat)
  redis.call('SET', rate_of(name), ms(tat), 'PX', math.ceil((tat - now_us) / 1000) + 1)
end

-- No grant puts the TAT further ahead than the burst: one beyond is of a former rate, or the clock went back. It is set back in Redis, not
-- here alone: it would stay as far ahead as it is.
local function tat_of(name, bound)
  if bound.interval == 0 then return 0 end
  local tat, furthest = tonumber(redis.call('GET', rate_of(name)) or '0') or 0, math.ceil(now_us + bound.interval * bound.burst)
  if not (tat <= furthest) then
    tat = furthest
    write_rate(name, tat)
  end
  return math.max(now_us, tat)
end

local gates = {}
local function gate_of(name, bound)
  if not gates[name] then
    local tat = tat_of(name, bound)
    local tokens = math.huge
    -- The hundredth of a µs is for what division of doubles loses.
    if bound.interval > 0 then tokens = math.floor((bound.interval * bound.burst - (tat - now_us) + 0.01) / bound.interval) end
    gates[name] = {bound = bound, tat = tat, tokens = tokens, permits = free_permits(name, bound.limit), granted = {}}
  end
  return gates[name]
end
local function type_gate()
  return gate_of(kind, of_type)
end
local function group_gate(group)
  return group ~= '' and (of_group.limit > 0 or of_group.interval > 0) and gate_of(kind .. ':' .. group, of_group) or nil
end

local function left_of(gate)
  return gate and math.min(gate.permits, gate.tokens) - #gate.granted or math.huge
end

-- How it stands with a gate that has nothing left.
local function standing(gate)
  if gate.permits - #gate.granted < 1 then return -1 end
  local tat = gate.tat + #gate.granted * gate.bound.interval
  return math.max(1, math.ceil((tat - (gate.bound.burst - 1) * gate.bound.interval - now_us) / 1000))
end

-- --- what is told -------------------------------------------------------------------------------------------------------------------

local at = 13
local function told(width)
  local count, items = tonumber(ARGV[at]), {}
  for i = 1, count do items[i] = {unpack(ARGV, at + 1 + (i - 1) * width, at + i * width)} end
  at = at + 1 + count * width
  return items
end
local function limited(group)
  local names = {}
  if of_type.limit > 0 then names[1] = kind end
  if of_group.limit > 0 and group ~= '' then names[#names + 1] = kind .. ':' .. group end
  return names
end
for _, free in ipairs(told(2)) do
  if not is_running(free[2]) then -- else another worker has it by now, with a permit of its own
    for _, name in ipairs(limited(free[1])) do redis.call('ZREM', permits_of(name), free[2]) end
  end
end
for _, noted in ipairs(told(2)) do
  for _, name in ipairs(limited(noted[1])) do note(permits_of(name), {noted[2]}) end
end
local lots = told(3)

-- --- what comes out -----------------------------------------------------------------------------------------------------------------

local chosen, reply, stands = lists(), {now, 0, {}}, {}
local taken, taken_others, spent, looked = 0, 0, 0, 0

local function capacity_for(s)
  return s == 1 and n - taken or math.min(n - taken, n_others - taken_others)
end

local function is_free_of_charge(fields)
  if type(fields) ~= 'table' then return true end
  local exp = tonumber(field(fields, 'exp') or '')
  return exp and exp <= now
end

local function grant(s, id, gate)
  if gate then table.insert(gate.granted, stands_at(s, id)) end
end

local function choose(s, row, group)
  local fields = row[2]
  if not is_free_of_charge(fields) then
    if group == nil then
      group = field(fields, 'group') or ''
      if left_of(group_gate(group)) < 1 then return end
    end
    grant(s, row[1], type_gate())
    grant(s, row[1], group_gate(group))
    taken = taken + 1
    if s > 1 then taken_others = taken_others + 1 end
  end
  table.insert(chosen[s], row[1])
  if fields then reply[#reply + 1] = {s, row[1], fields, 1} end
end

local function want_of(s, gate, share, before)
  return math.min(share - (taken - before), capacity_for(s), left_of(type_gate()), left_of(gate))
end

local function serve(s, lot, group, share)
  local is_shared = string.sub(lot, 1, #SHARED) == SHARED
  local gate, from, before = nil, '-', taken
  if is_shared then group = nil else gate = group_gate(group) end
  while looked < LOOK_AT and spent < most do
    local want = want_of(s, gate, share, before)
    if want < 1 then break end
    local page = redis.call('XPENDING', KEYS[s], GROUP, from, '+', is_shared and LOOK_AT or math.min(want, LOOK_AT), lot)
    if #page == 0 then break end
    local ids = {}
    for _, row in ipairs(page) do
      if row[4] > 0 then park(s, row[1], SUSPECT, row[4]) else ids[#ids + 1] = row[1] end
    end
    local rows, _, size = read_entries(KEYS[s], ids, most - spent, most_of_one)
    spent, looked = spent + size, looked + #page
    for _, row in ipairs(rows) do
      if want_of(s, gate, share, before) < 1 then break end
      choose(s, row, group)
    end
    from = '(' .. page[#page][1]
  end
  return gate, is_shared and taken == before
end

for i, lot in ipairs(lots) do
  local s = tonumber(lot[1])
  if capacity_for(s) > 0 and left_of(type_gate()) > 0 then
    local share = math.max(1, math.floor(math.min(n - taken, left_of(type_gate())) / (#lots - i + 1)))
    local gate, is_stuck = serve(s, lot[2], lot[3], share)
    stands[i] = gate or (is_stuck and -1 or 0)
  end
end

-- The permits, the rates, and last the leases: what fails before writes none of the later ones.
for name, gate in pairs(gates) do
  if #gate.granted > 0 then
    if gate.bound.limit > 0 then note(permits_of(name), gate.granted) end
    if gate.bound.interval > 0 then write_rate(name, math.ceil(gate.tat + #gate.granted * gate.bound.interval)) end
  end
end
for s = 1, #STREAMS do hand_out(s, chosen[s], #chosen[s], consumer) end

for i, lot in ipairs(lots) do
  local stand = stands[i] or 0
  if stands[i] and forget_if_empty(tonumber(lot[1]), lot[2]) then
    stand = -2
  elseif type(stand) == 'table' then
    stand = left_of(stand) < 1 and standing(stand) or 0
  end
  reply[3][i] = stand
end
if gates[kind] and left_of(gates[kind]) < 1 then reply[2] = standing(gates[kind]) end
return reply
