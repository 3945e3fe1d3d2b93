#!lua flags=allow-oom
-- Held jobs to the delayed ones; a job that is no longer ours is left alone, and one that was cancelled meanwhile is buried instead.
-- ARGV: consumer, then per job: stream, entry, count, kind ('retry', 'snooze', 'at'), delay or time in ms, job id, key, record.
-- Reply: per job 1 moved, 0 refused, or an error text.
-- Order: messages, their times, the marks of keys, last the entries: an error midway leaves jobs twice, never nowhere.

local consumer, now, WIDTH = ARGV[1], now_ms(), 8
local moved, entries = {}, lists() -- where each job begins among the arguments; the entries of each stream

local function move(i)
  local s, id, count = tonumber(ARGV[i]), ARGV[i + 1], tonumber(ARGV[i + 2])
  if not holds(s, id, consumer, count) then return 0 end
  if is_cancelled(s, id) then return bury(s, id) and 1 or 0 end
  table.insert(moved, i)
  table.insert(entries[s], id)
  remove(s, id, count)
  return 1
end

-- An entry that was deleted by hand is a job no more: claiming what is ours tells, and strikes it off the list of the held.
local function there(s)
  local ids = {}
  if #entries[s] == 0 then return ids end
  local call = {'XCLAIM', KEYS[s], GROUP, consumer, 0, unpack(entries[s])}
  call[#call + 1] = 'JUSTID'
  for _, id in ipairs(redis.call(unpack(call))) do ids[id] = true end
  return ids
end

local function write(answers)
  local jobs, members, records, times, is_taken = {}, {}, {}, {}, {}
  local ids = {}
  for s = 1, #STREAMS do ids[s] = there(s) end
  for _, i in ipairs(moved) do
    if ids[tonumber(ARGV[i])][ARGV[i + 1]] then
      jobs[#jobs + 1], members[#members + 1] = i, ARGV[i + 5]
    else
      answers[(i - 2) / WIDTH + 1] = 0
    end
  end
  if #jobs == 0 then return end
  local taken = redis.call('HMGET', MSG, unpack(members))
  for at, i in ipairs(jobs) do
    local member, due = members[at], tonumber(ARGV[i + 4])
    if taken[at] or is_taken[member] then member = member .. '#' .. stands_at(tonumber(ARGV[i]), ARGV[i + 1]) end
    is_taken[member], members[at] = true, member
    records[2 * at - 1], records[2 * at] = member, ARGV[i + 7]
    times[2 * at - 1], times[2 * at] = ARGV[i + 3] == 'at' and due or now + due, member
  end
  redis.call('HSET', MSG, unpack(records))
  redis.call('ZADD', DUE, unpack(times))
  for at, i in ipairs(jobs) do
    if ARGV[i + 6] ~= '' then
      move_key({'key', ARGV[i + 6]}, STREAMS[tonumber(ARGV[i])] .. ' ' .. ARGV[i + 1], 'due ' .. members[at], times[2 * at - 1])
    end
  end
end

look_up(2, WIDTH, consumer)
return each(2, WIDTH, move, write)
