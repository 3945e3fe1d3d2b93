#!lua flags=allow-oom
-- Held jobs to the delayed ones; a job that is no longer ours is left alone.
-- ARGV: consumer, then per job: stream, entry, count, kind ('retry', 'snooze', 'at'), delay or time in ms, job id, failures.
-- Reply: per job 1 moved, 0 refused, or an error text.
-- Order: message, then its time, then the key's mark, last the entry: an error midway leaves the job twice, never nowhere.

local consumer = ARGV[1]
local now = now_ms()
local moved = {} -- each: stream, entry, job id, packed record, time, key

local function move(i)
  local s, id, count = tonumber(ARGV[i]), ARGV[i + 1], tonumber(ARGV[i + 2])
  local kind, job_id, failures = ARGV[i + 3], ARGV[i + 5], ARGV[i + 6]
  if not holds(s, id, consumer, count) then return 0 end
  local fields = fields_of(KEYS[s], id)
  if not fields then
    redis.call('XACK', KEYS[s], GROUP, id)
    return 0
  end

  local record = {'stream', STREAMS[s], 'id', job_id}
  local size, first_at, snoozed_at, key = 4, nil, nil, nil
  local function note(name, value)
    record[size + 1], record[size + 2] = name, value
    size = size + 2
  end
  for f = 1, #fields, 2 do
    local name, value = fields[f], fields[f + 1]
    if name == 'first_at' then
      first_at = value
    elseif name == 'snoozed_at' then
      snoozed_at = value
    elseif name ~= 'id' and name ~= 'at' and name ~= 'a' then
      note(name, value)
      if name == 'key' then key = value end
    end
  end
  if failures ~= '0' then note('a', failures) end
  note('first_at', first_at or string.match(id, '^%d+'))
  if kind == 'snooze' then snoozed_at = snoozed_at or ms(now) end
  if snoozed_at then note('snoozed_at', snoozed_at) end

  local due = tonumber(ARGV[i + 4])
  if kind ~= 'at' then due = now + due end
  moved[#moved + 1] = {s, id, job_id, cmsgpack.pack(record), due, key}
  remove(s, id, count)
  return 1
end

local function write()
  if #moved == 0 then return end
  local members, records, times = {}, {}, {}
  for at, job in ipairs(moved) do members[at] = job[3] end
  local taken = redis.call('HMGET', MSG, unpack(members))
  local is_taken = {}
  for at, job in ipairs(moved) do
    local member = members[at]
    if taken[at] or is_taken[member] then member = member .. '#' .. stands_at(job[1], job[2]) end
    is_taken[member], members[at] = true, member
    records[2 * at - 1], records[2 * at] = member, job[4]
    times[2 * at - 1], times[2 * at] = ms(job[5]), member
  end
  redis.call('HSET', MSG, unpack(records))
  redis.call('ZADD', DUE, unpack(times))
  for at, job in ipairs(moved) do
    if job[6] then move_key({'key', job[6]}, STREAMS[job[1]] .. ' ' .. job[2], 'due ' .. members[at]) end
  end
end

look_up(2, 7, consumer)
return each(2, 7, move, write)
