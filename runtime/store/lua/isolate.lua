#!lua flags=allow-oom
-- Hand out suspects, entries that some worker held when it died, to a consumer that may isolate.
-- ARGV: consumer, its lease in ms, for how long the youngest job that runs there has run in ms (-1: none runs), base of the isolation
-- time in ms, n (how many may start; -1 gives the place up), 1 if no former suspect runs there, the numbers of the streams that are
-- paused; how many types have a limit, and in turn such a type, 1 if it has one of itself, 1 if its groups have; then in turn type,
-- newest version and timeout in ms of what may run there.
-- Reply: now in ms, a word, a time in ms, then per entry {stream, id, fields, delivery count, names of workers that died of it alone}:
-- 'none'  no suspect that may run there now: the place is given up; ask again after this time for those that are there all the same
-- 'busy'  others have all places, half of the workers that live, at least one; one may be free after this time
-- 'wait'  the place is yours, but what runs beside must first have run for this time, or have ended; who can start at once needs no
--         place that is only waited for
-- 'run'   these are yours, for this time in isolation              'dead'  this one is yours, to be dead-lettered
-- Most deaths are no job's fault: suspects run together at first, n of them. Who dies again runs in small groups twice, then alone.
-- What runs alone is written down beside its consumer in the same step as the lease: if that one dies before it has said that the
-- isolation is over, `reclaim` counts it as evidence. Of whom a worker died alone runs next where no other former suspect does, so that
-- its second and third death are its own.
-- What has a limit runs with a permit. Of that, what died at its first delivery and holds none has never run: it is no suspect, and waits
-- for a permit in the lot of its gate. The others are within the limit with those they have.

local consumer, lease_ms, calm_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local base_ms, n, is_clean = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local LOOK_AT, STRIKES_OUT = 500, 3 -- guesses: suspects of a stream looked at; workers that died of one that ran alone
local ALONE = 4 -- a guess: who is handed out for the fourth time after a death runs alone
local MAX_BYTES = 2000000 -- of an answer, and one entry more: payloads may be large where connections are slow; a guess
local now = now_ms()
local newest, timeouts = {}, {}
local paused, limited, types = ARGV[7] or '', {}, 9 + 3 * (ARGV[8] or 0)
for i = 9, types - 1, 3 do limited[ARGV[i]] = {ARGV[i + 1] == '1', ARGV[i + 2] == '1'} end
for i = types, #ARGV, 3 do
  newest[ARGV[i]], timeouts[ARGV[i]] = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
end

local function leave(ask_after_ms)
  redis.pcall('HDEL', ISOLATIONS, consumer)
  return {now, 'none', ask_after_ms}
end
if n < 0 then return leave(0) end

-- A stream whose key is of another type has no suspects, and must not keep those of the others.
local function suspects_on(s, n)
  return redis.pcall('XPENDING', KEYS[s], GROUP, '-', '+', n, SUSPECT)
end

local function forget_lot(s)
  if #suspects_on(s, 1) == 0 then redis.pcall('XGROUP', 'DELCONSUMER', KEYS[s], GROUP, SUSPECT) end
end

-- Strikes whose entry is gone (a stream was deleted, or an unfenced XACK) are void, and so are isolations of workers that are forgotten.
local function sweep()
  local page = redis.pcall('HSCAN', STRIKES, '0', 'COUNT', 20)
  for i = 1, #(page[2] or {}), 2 do
    local name, id = string.match(page[2][i], '^(%a+)/(%d+%-%d+)$')
    local is_there = false
    for s = 1, #STREAMS do
      if STREAMS[s] == name then is_there = #redis.pcall('XPENDING', KEYS[s], GROUP, id, id, 1) > 0 end
    end
    if not is_there then redis.call('HDEL', STRIKES, page[2][i]) end
  end
  for _, name in ipairs(redis.pcall('HKEYS', ISOLATIONS)) do
    if not redis.call('ZSCORE', WORKERS, name) then redis.call('HDEL', ISOLATIONS, name) end
  end
end

-- In ms, until a place may be free, for who starts at once, and for who waits in it; 0 when one is. An isolation holds its place as long
-- as it said, and no longer than its worker lives.
local WAITING = 'waiting' -- where a place is only waited for: no entry has that name
local function wait_for_place()
  local places = math.max(1, math.floor(redis.call('ZCOUNT', WORKERS, '(' .. ms(now), '+inf') / 2))
  local running, taken, soonest_run, soonest = 0, 0, math.huge, math.huge
  local isolations = redis.pcall('HGETALL', ISOLATIONS)
  for i = 1, #isolations, 2 do
    local until_ms, name = string.match(isolations[i + 1], '^(%d+) (.*)$')
    local ends = tonumber(until_ms or '0')
    local lives_until = tonumber(redis.call('ZSCORE', WORKERS, isolations[i]) or '0')
    if isolations[i] ~= consumer and math.min(ends, lives_until) > now then
      taken, soonest = taken + 1, math.min(soonest, ends)
      if name ~= WAITING then running, soonest_run = running + 1, math.min(soonest_run, ends) end
    end
  end
  return running < places and 0 or soonest_run - now, taken < places and 0 or soonest - now
end

local function hold_place(for_ms, alone)
  redis.call('HSET', ISOLATIONS, consumer, ms(now + for_ms) .. ' ' .. alone)
end

-- To be dead-lettered first; then, who has a strike, where it may run at all; then the least suspect.
local GUILTY, STRUCK, UNSTRUCK = 1, 2, 3

-- The names that each suspect of a stream has, in order; most often there are none.
local function names_on(s, rows)
  local some = redis.pcall('HLEN', STRIKES)
  if #rows == 0 or type(some) ~= 'number' or some == 0 then return {} end
  local places = {}
  for at, row in ipairs(rows) do places[at] = stands_at(s, row[1]) end
  return redis.call('HMGET', STRIKES, unpack(places))
end

-- How many may run together. Groups of the root of all that wait: as many groups as a guilty one takes along.
local function most_together(suspect)
  if suspect.rank ~= UNSTRUCK or suspect.count >= ALONE then return 1 end
  if suspect.count == 1 then return n end
  local waiting = 0
  for s = 1, #STREAMS do
    for _, row in ipairs(redis.pcall('XPENDING', KEYS[s], GROUP)[4] or {}) do
      if row[1] == SUSPECT then waiting = waiting + row[2] end
    end
  end
  return math.min(n, math.floor(math.sqrt(waiting)))
end

local function has_never_run(suspect, kind, fields)
  local of_type, of_group = unpack(limited[kind] or {})
  local group = field(fields, 'group') or ''
  local name = of_type and kind or of_group and group ~= '' and kind .. ':' .. group
  if not name or suspect.count > 1 then return false end
  return redis.pcall('ZSCORE', PREFIX .. 'permits:' .. name, stands_at(suspect.s, suspect.id)) == false
end

local listed, is_any = {}, false
for s = 1, #STREAMS do
  local rows = suspects_on(s, LOOK_AT)
  local names = names_on(s, rows)
  is_any = is_any or #rows > 0
  for position, row in ipairs(rows) do
    local count, rank = math.max(1, row[4]), UNSTRUCK
    local _, strikes = string.gsub(names[position] or '', '%S+', '')
    if count > 1 and strikes > 0 then rank = strikes >= STRIKES_OUT and GUILTY or STRUCK end
    if (rank ~= STRUCK or is_clean) and not string.find(paused, s, 1, true) then
      listed[#listed + 1] = {
        s = s, id = row[1], count = count, rank = rank, place = s * LOOK_AT + position, names = names[position] or '',
      }
    end
  end
end
table.sort(listed, function(a, b)
  if a.rank ~= b.rank then return a.rank < b.rank end
  if a.count ~= b.count then return a.count < b.count end
  return a.place < b.place
end)

local function busy(free_after_ms)
  redis.pcall('HDEL', ISOLATIONS, consumer)
  return {now, 'busy', free_after_ms}
end

local run_after_ms, wait_after_ms = wait_for_place()
if run_after_ms > 0 and listed[1] and listed[1].rank ~= GUILTY then return busy(run_after_ms) end

local chosen, isolation_ms, most, bytes = {}, 0, 1, 0
for _, suspect in ipairs(listed) do
  local stream, id = KEYS[suspect.s], suspect.id
  if #chosen > 0 and (#chosen >= most or suspect.count ~= chosen[1].count or bytes > MAX_BYTES) then break end
  local fields = fields_of(stream, id)
  local kind = fields and field(fields, 'type')
  local known = kind and newest[kind]
  if not fields then
    redis.call('XACK', stream, GROUP, id)
  elseif known and has_never_run(suspect, kind, fields) then
    park(suspect.s, id, GATE .. kind, 0)
  elseif not kind or (known and (tonumber(field(fields, 'v') or '1') or 0) <= known) then -- without a type, any worker can dead-letter it
    suspect.fields = fields
    chosen[#chosen + 1] = suspect
    isolation_ms = math.max(isolation_ms, math.min(base_ms * 2 ^ (suspect.count - 1), timeouts[kind or ''] or 0))
    if #chosen == 1 then most = most_together(suspect) end
    for i = 1, #fields do bytes = bytes + #fields[i] end
  end
end
if #chosen == 0 then
  sweep()
  for s = 1, #STREAMS do forget_lot(s) end
  return leave(is_any and lease_ms or 0)
end

local is_guilty = chosen[1].rank == GUILTY
if not is_guilty and run_after_ms > 0 then return leave(run_after_ms) end -- what is to be dead-lettered cannot be read here
if not is_guilty and (n == 0 or (calm_ms >= 0 and calm_ms < isolation_ms)) then
  if wait_after_ms > 0 then return busy(wait_after_ms) end
  hold_place(math.max(lease_ms, 2 * isolation_ms), WAITING)
  return {now, 'wait', isolation_ms}
end

local reply = {now, is_guilty and 'dead' or 'run', isolation_ms}
for _, suspect in ipairs(chosen) do
  redis.call('XCLAIM', KEYS[suspect.s], GROUP, consumer, 0, suspect.id, 'RETRYCOUNT', suspect.count + 1, 'JUSTID')
  reply[#reply + 1] = {suspect.s, suspect.id, suspect.fields, suspect.count + 1, suspect.names}
end
for s = 1, #STREAMS do forget_lot(s) end
if not is_guilty then hold_place(isolation_ms, #chosen == 1 and stands_at(chosen[1].s, chosen[1].id) or '') end
return reply
