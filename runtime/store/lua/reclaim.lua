#!lua flags=allow-oom
-- Take what is not renewed from real consumers of one stream and put it into a lot, at most n.
-- ARGV: stream, the caller's lease in ms, n, then the consumers whose row has stood still for two leases of the caller's own clock, each
-- with the time at which it stood: one that has moved since is alive.
-- Reply: number taken from the dead, number of lost replies found, 1 while the guard holds, then type and id of the first few that were
-- taken from the dead. Of each of those, an event says so, and of each worker the record of deaths.
-- Whose process was seen to end (see reap), has no lease to wait for; while the guard holds, nothing is taken from others.
-- A live consumer did not renew: it never saw the reply, so the delivery does not count. What a dead one held is suspect, and keeps
-- its count; what it ran alone when it died has that death for evidence.
-- No cursor: what is taken leaves the list.

local s, lease_ms, n = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local stream = KEYS[s]
local now = now_ms()
local is_guarded = guard(now, lease_ms) < lease_ms

local LATER = 1.25 -- for longer than a beat takes, on a busy machine too; a guess
local still = {}
for i = 4, #ARGV, 2 do still[ARGV[i]] = tonumber(ARGV[i + 1]) end

local function lease_in(row)
  local lease = tonumber(row and string.match(row, '^(%d+) ') or nil)
  return lease and math.min(lease, MAX_LEASE_MS) -- a row may be a stranger's
end

local longest
local function longest_lease()
  if not longest then
    longest = lease_ms
    for _, row in ipairs(redis.call('HVALS', ROWS)) do longest = math.max(longest, lease_in(row) or 0) end
  end
  return longest
end

-- Say for people that a run is lost with its worker. Which job that was is read as long as this call has not read much.
local bytes_left = 131072 -- as a step of an operation: payloads may be long
local function tell_lost(id, consumer)
  local place, told = stands_at(s, id), {}
  local fields = bytes_left > 0 and fields_of(stream, id) or {}
  bytes_left = bytes_left - bytes_of(fields)
  local known = by_name(fields)
  local failed = string.match(known.a or '', '^%d+$') and #known.a < 8 and tonumber(known.a) or 0
  if fields[1] then
    told = {'id', string.sub(known.id or STREAMS[s] .. '-' .. id, 1, 128), 'type', string.sub(known.type or '', 1, 64),
      'attempt', ms(failed + 1)}
  end
  redis.pcall('XADD', PREFIX .. 'events', 'MAXLEN', '~', MAX_EVENTS, '*', 'place', place, 'outcome', 'lost', 'at', ms(now),
    'by', string.sub(consumer, 1, 64), unpack(told))
  return named(s, id, known)
end

local dead, undelivered, jobs = 0, 0, {}
for _, row in ipairs(redis.call('XPENDING', stream, GROUP)[4] or {}) do
  local consumer = row[1]
  local is_reaped, taken = was_reaped(consumer), {}
  if string.sub(consumer, 1, 1) ~= '~' and dead + undelivered < n and (is_reaped or not is_guarded) then
    local lives_until = stands_until(consumer)
    local is_still = is_reaped or still[consumer] == lives_until
    local is_alive = lives_until > now and not is_still
    local idle = is_still and 0 or lease_in(redis.call('HGET', ROWS, consumer)) or longest_lease()
    local isolation = redis.pcall('HGET', ISOLATIONS, consumer)
    local alone = type(isolation) == 'string' and string.match(isolation, '^%d+ (.+)$')
    -- A beat renews before it says that its worker lives: of one that dies now, leases end a moment before its row does.
    if is_alive then idle = idle * LATER end
    local held = redis.call('XPENDING', stream, GROUP, 'IDLE', ms(idle), '-', '+', n - dead - undelivered, consumer)
    -- Of what was cancelled no letter may be possible now: it stays where it is until the next sweep, and the others go on.
    for _, entry in ipairs(held) do
      if is_alive then
        if pcall(park, s, entry[1], FREE, math.max(0, entry[4] - 1)) then undelivered = undelivered + 1 end
        acquit(s, entry[1], consumer)
      else
        if alone == stands_at(s, entry[1]) then strike(s, entry[1], consumer) end
        if pcall(park, s, entry[1], SUSPECT, math.max(1, entry[4])) then
          dead = dead + 1
          taken[#taken + 1] = tell_lost(entry[1], consumer)
        end
      end
    end
    if #taken > 0 and not is_reaped then note_death(consumer, #taken, taken) end
    for _, job in ipairs(taken) do jobs[#jobs + 1] = job end
  end
end
if dead > 0 then redis.pcall('PEXPIRE', PREFIX .. 'events', EVENTS_LIFE_MS) end
return {dead, undelivered, is_guarded and 1 or 0, unpack(jobs, 1, math.min(#jobs, TOLD_JOBS))}
