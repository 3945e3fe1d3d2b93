#!lua flags=allow-oom
-- Hand out what waits in the lots of one gated type, as far as its permits and tokens go, and take back permits that are free again.
-- ARGV: consumer, how many may come, how many of them from other streams than the first, how many bytes may come together (at least one
-- entry does), how many one entry may have, the type, its limit, interval in µs and burst (0: no bound), the same three for each group;
-- then three lists, each with its length before it: places that are free again (group, place), places to note (group, place), lots
-- (stream, lot, group).
-- Reply: now in ms, how it stands with the type, and with each lot, then for each stream its entries as {id, fields, 1}; of one that is
-- too large its bytes in place of the fields. How it stands: 0 more may come at once, -1 short of permits, -2 (of a lot) empty and
-- forgotten, an error text (of a lot: its stream, or the keys of its group, cannot be read; the others go on), else short of tokens, and
-- in how many ms the next one comes.
-- A permit is a place among `permits:<gate>`, scored with when it was last seen pending with a worker; no clock frees it. A rate is the
-- theoretical arrival time (TAT) of the next job in µs, as GCRA has it.
-- What is past its `exp`, too large or deleted is handed out free of charge: it does not start.

local consumer, n, n_others = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local most, most_of_one, kind = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local HEAL, SEEN_MS = 20, 1000 -- guesses: permits that a gate looks at, unless one was seen within this time
local SUSPECT_MS = 60000 -- a guess: isolation takes seconds, and a paused priority must not hold a permit for days
local LOOK_AT = 500 -- a guess: entries looked at, a millisecond of the server
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

local function bounds(at)
  return {limit = tonumber(ARGV[at]), interval = tonumber(ARGV[at + 1]), burst = tonumber(ARGV[at + 2])}
end
local of_type, of_group = bounds(7), bounds(10)
local is_by_group = of_group.limit > 0 or of_group.interval > 0

-- Its permits would be wrong if it ran: an entry that is gone, or waits in a lot. What a dead worker had keeps its permit for a while: it
-- runs again soon, whatever the limit.
local number_of = {}
for s = 1, #STREAMS do number_of[STREAMS[s]] = s end
local function is_running(place)
  local name, id = string.match(place, '^(%a+)/(%d+%-%d+)$')
  if not number_of[name] then return false end
  local row = redis.pcall('XPENDING', KEYS[number_of[name]], GROUP, id, id, 1)[1]
  return row and (string.sub(row[2], 1, 1) ~= '~' or row[2] == SUSPECT and row[3] < SUSPECT_MS)
end

local function permits_of(name)
  return PREFIX .. 'permits:' .. name
end
local function rate_of(name)
  return PREFIX .. 'rate:' .. name
end
local function group_name(group)
  return kind .. ':' .. group
end

-- --- gates --------------------------------------------------------------------------------------------------------------------------

local NOW, AGO, AHEAD = ms(now), ms(now - SEEN_MS), '(' .. ms(now + SEEN_MS)
local function note(key, places)
  local scored = {}
  for i, place in ipairs(places) do scored[2 * i - 1], scored[2 * i] = NOW, place end
  redis.call('ZADD', key, unpack(scored))
  redis.call('PEXPIRE', key, KEY_LIFE_MS)
end

-- A gate that has fewer than may come looks whether the others are still in use: those of dead workers, of retries and of a restored
-- server come back so. (Looked at only where none is left, one that nobody uses would stay while others come and go.)
local function free_permits(key, limit)
  local free = limit - redis.call('ZCARD', key)
  if free >= n then return free end
  local places = redis.call('ZRANGE', key, AHEAD, '+inf', 'BYSCORE', 'LIMIT', 0, HEAL) -- the clock went back
  if #places == 0 then places = redis.call('ZRANGE', key, '-inf', AGO, 'BYSCORE', 'LIMIT', 0, HEAL) end
  local running, gone = {}, {}
  for _, place in ipairs(places) do table.insert(is_running(place) and running or gone, place) end
  if #gone > 0 then redis.call('ZREM', key, unpack(gone)) end
  if #running > 0 then note(key, running) end
  return free + #gone
end

local function write_rate(name, tat)
  redis.call('SET', rate_of(name), ms(tat), 'PX', math.ceil((tat - now_us) / 1000) + 1)
end

-- No grant puts the TAT further ahead than the burst: one beyond is of a former rate, or the clock went back. It is set back in Redis, not
-- here alone: it would stay as far ahead as it is.
local function tat_of(name, bound)
  local tat, furthest = tonumber(redis.call('GET', rate_of(name)) or '0') or 0, math.ceil(now_us + bound.interval * bound.burst)
  if not (tat <= furthest) then
    tat = furthest
    write_rate(name, tat)
  end
  return math.max(now_us, tat)
end

-- Each gate that is asked: what it has left, the places that it granted; with a rate, its TAT before them.
local gates = {}
local function open_gate(gate, name, bound)
  if bound.interval > 0 then
    gate.tat = tat_of(name, bound)
    -- The hundredth of a µs is for what division of doubles loses.
    gate.tokens = math.floor((bound.interval * bound.burst - (gate.tat - now_us) + 0.01) / bound.interval)
  end
  if bound.limit > 0 then gate.permits = free_permits(permits_of(name), bound.limit) end
end
local function new_gate(name, bound)
  local gate = {bound = bound, permits = math.huge, tokens = math.huge, granted = {}}
  local ok, failure = pcall(open_gate, gate, name, bound)
  if not ok then gate.permits, gate.failure = 0, text_of(failure) .. ' (' .. permits_of(name) .. ' or ' .. rate_of(name) .. ')' end
  gates[name] = gate
  return gate
end
-- Where the keys of the type itself cannot be read, the call fails; of a group whose keys cannot, nothing comes, and the others go on.
local function type_gate()
  local gate = gates[kind] or new_gate(kind, of_type)
  return gate.failure and error(gate.failure) or gate
end
local function group_gate(group)
  if group == '' or not is_by_group then return nil end
  local name = group_name(group)
  return gates[name] or new_gate(name, of_group)
end

local function left_of(gate)
  return gate and math.min(gate.permits, gate.tokens) - #gate.granted or math.huge
end

-- How it stands with a gate.
local function standing(gate)
  if gate.failure then return text_of(gate.failure) end
  local granted, bound = #gate.granted, gate.bound
  if gate.permits <= granted then return -1 end
  if gate.tokens > granted then return 0 end
  return math.max(1, math.ceil((gate.tat + (granted - bound.burst + 1) * bound.interval - now_us) / 1000))
end

-- --- what is told -------------------------------------------------------------------------------------------------------------------

-- Use each item of the list at `at`, by where it begins; return where the next list is.
local function told(at, width, use)
  local after = at + tonumber(ARGV[at]) * width
  for i = at + 1, after, width do use(i) end
  return after + 1
end
local function permits_with(group)
  local keys = {}
  if of_type.limit > 0 then keys[1] = permits_of(kind) end
  if of_group.limit > 0 and group ~= '' then keys[#keys + 1] = permits_of(group_name(group)) end
  return keys
end
-- A hint: where a permit cannot be taken back or noted, a look finds it.
local at = told(13, 2, function(i)
  local keys = permits_with(ARGV[i])
  if #keys == 0 or is_running(ARGV[i + 1]) then return end -- another worker has it by now, with a permit of its own
  for _, key in ipairs(keys) do redis.pcall('ZREM', key, ARGV[i + 1]) end
end)
at = told(at, 2, function(i)
  if not is_running(ARGV[i + 1]) then return end -- it has ended since: that may have been told before this, down another connection
  for _, key in ipairs(permits_with(ARGV[i])) do pcall(note, key, {ARGV[i + 1]}) end
end)

-- --- what comes out -----------------------------------------------------------------------------------------------------------------

local chosen, given, stands, may_be_empty = lists(), lists(), {}, {}
local taken, taken_others, spent, looked = 0, 0, 0, 0

local function capacity_for(s)
  return s == 1 and n - taken or math.min(n - taken, n_others - taken_others)
end

-- As admission has it: an `exp` of 0 is none, and one that is no number makes the job unreadable.
local function is_free_of_charge(fields)
  if type(fields) ~= 'table' then return true end
  local exp = field(fields, 'exp')
  return exp and string.match(exp, '^%d+$') and tonumber(exp) > 0 and tonumber(exp) <= now
end

-- Hand out an entry; return how many permits and tokens that takes, nil where its group has none left.
local function choose(s, row, group)
  local cost = is_free_of_charge(row[2]) and 0 or 1
  if cost > 0 then
    local gate, place = group_gate(group or field(row[2], 'group') or ''), stands_at(s, row[1])
    if left_of(gate) < 1 then return nil end
    table.insert(type_gate().granted, place)
    if gate then table.insert(gate.granted, place) end
    taken = taken + 1
    if s > 1 then taken_others = taken_others + 1 end
  end
  table.insert(chosen[s], row[1])
  if row[2] then table.insert(given[s], row) end
  return cost
end

-- Hand out of one lot, at most `share`; return how it stands with it (or its gate), and whether it may be empty. In the lot that groups
-- share, and in that of no group where one stood before groups were bounded, each entry says which gate it asks.
local function serve(s, lot, group, share)
  if string.sub(lot, 1, #OVERFLOW) == OVERFLOW or group == '' and is_by_group then group = nil end
  local gate, from, page, has_moved, is_stuck = group and group_gate(group), '-', {}, false, false
  local left = math.min(share, left_of(gate)) -- no more than may come at all
  while left > 0 and looked < LOOK_AT and spent < most do
    -- At first no more than may come: most of what waits may start.
    page = redis.call('XPENDING', KEYS[s], GROUP, from, '+', math.min(math.max(left, 2 * #page), LOOK_AT - looked), lot)
    if #page == 0 then return is_stuck and -1 or 0, true end
    local ids = {}
    for _, row in ipairs(page) do
      if row[4] > 0 then
        park(s, row[1], SUSPECT, row[4])
        has_moved = true
      else
        ids[#ids + 1] = row[1]
      end
    end
    local rows, _, size = read_entries(KEYS[s], ids, most - spent, most_of_one)
    spent, looked, from = spent + size, looked + #page, '(' .. page[#page][1]
    for _, row in ipairs(rows) do
      if left < 1 then break end
      local cost = choose(s, row, group)
      if cost then
        left, has_moved = left - cost, true
      else
        is_stuck = true
      end
    end
  end
  return gate or (is_stuck and not has_moved and -1 or 0), has_moved
end

local function lot_at(i)
  return tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2]
end
local asked = tonumber(ARGV[at])
told(at, 3, function(i)
  local s, lot, group = lot_at(i)
  local nth, capacity = #stands + 1, capacity_for(s)
  local may_come = capacity > 0 and math.min(capacity, left_of(type_gate())) or 0
  stands[nth] = 0
  if may_come > 0 then
    local ok, stand, is_bare = pcall(serve, s, lot, group, math.max(1, math.floor(may_come / (asked - nth + 1))))
    stands[nth], may_be_empty[nth] = ok and stand or text_of(stand), ok and is_bare
  end
end)

-- The permits, the rates, and last the leases: what fails before writes none of the later ones.
for name, gate in pairs(gates) do
  if #gate.granted > 0 then
    if gate.bound.limit > 0 then note(permits_of(name), gate.granted) end
    if gate.bound.interval > 0 then write_rate(name, math.ceil(gate.tat + #gate.granted * gate.bound.interval)) end
  end
end
for s = 1, #STREAMS do hand_out(s, chosen[s], #chosen[s], consumer) end

local told_of = {}
told(at, 3, function(i)
  local s, lot = lot_at(i)
  local nth = #told_of + 1
  local stand = type(stands[nth]) == 'table' and standing(stands[nth]) or stands[nth]
  told_of[nth] = may_be_empty[nth] and forget_if_empty(s, lot) and -2 or stand
end)
return {now, gates[kind] and standing(gates[kind]) or 0, told_of, unpack(given)}
