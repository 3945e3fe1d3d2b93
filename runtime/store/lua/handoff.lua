#!lua
-- Finished jobs leave, and what they hand on is enqueued in the same step; where a job has left before, nothing of it is.
-- ARGV: consumer, 1 where its leases are tested, else 0; then per job: stream, entry, count, key ('' where none), how many it hands on,
-- and per message of these: stream, at in ms ('' for now), how many words its fields and values have, these in turn.
-- Reply: per job 1 gone, 0 refused or gone before, or an error text: then it stays, and nothing of what it hands on does.
-- Order: the messages as `send` stores them, then the entries. A job's key is free for what it hands on.

local consumer, has_fence, now = ARGV[1], ARGV[2] == '1', now_ms()

local function read_jobs()
  local jobs, at = {}, 3
  while at <= #ARGV do
    local job = {s = tonumber(ARGV[at]), id = ARGV[at + 1], count = tonumber(ARGV[at + 2]), key = ARGV[at + 3], messages = {}, added = {}}
    local first = at + 5
    for i = 1, tonumber(ARGV[at + 4]) do
      local size = tonumber(ARGV[first + 2])
      job.messages[i] = {tonumber(ARGV[first]), ARGV[first + 1], {unpack(ARGV, first + 3, first + 2 + size)}}
      first = first + 3 + size
    end
    job.own = STREAMS[job.s] .. ' ' .. job.id
    jobs[#jobs + 1], at = job, first
  end
  return jobs
end

-- Who has this entry, if it may leave: us by this count, where there is a fence, else anybody. Most are listed as ours already.
local function holder_of(job)
  local count = known[job.s][job.id]
  if count == job.count or (count and not has_fence) then return consumer end
  local row = redis.call('XPENDING', KEYS[job.s], GROUP, job.id, job.id, 1)[1]
  if not row or (has_fence and (row[2] ~= consumer or row[4] ~= job.count)) then return nil end
  return row[2]
end

-- Which entries are pending with someone, and there: one that was deleted by hand is struck off the list by the claim, which changes
-- nothing else. All of one holder are asked for at once.
local function present(jobs)
  local asked, there = {}, lists()
  for _, job in ipairs(jobs) do
    local holder = holder_of(job)
    if holder then
      local name = job.s .. ' ' .. holder
      asked[name] = asked[name] or {'XCLAIM', KEYS[job.s], GROUP, holder, 0, s = job.s}
      table.insert(asked[name], job.id)
    end
  end
  for _, claim in pairs(asked) do
    claim[#claim + 1] = 'JUSTID'
    for _, id in ipairs(redis.call(unpack(claim))) do there[claim.s][id] = true end
  end
  return there
end

local function enqueue(job, s, due, fields)
  local key = field(fields, 'key')
  if key and is_spare(s, due, fields, key, job.own, now) then return end
  local place
  if due == '' then
    place = STREAMS[s] .. ' ' .. redis.call('XADD', KEYS[s], '*', unpack(fields))
  else
    place = delay(s, due, fields, field(fields, 'id'), ms(now), stands_at(job.s, job.id))
  end
  table.insert(job.added, place)
  if key then pcall(own_key, key, place, due) end
end

-- What was folded into another job stays so: it is folded into it again by the next try. The job keeps its key, if one that is taken
-- back had it, and so do others.
local function take_back(job)
  for _, place in ipairs(job.added) do
    local where, id = string.match(place, '^(%S+) (.+)$')
    if where == 'due' then
      redis.pcall('ZREM', DUE, id)
      redis.pcall('HDEL', MSG, id)
    else
      redis.pcall('XDEL', PREFIX .. where, id)
    end
    if job.key ~= '' and place_of_owner(job.key) == place then pcall(own_key, job.key, job.own) end
  end
  for _, one in ipairs(overtaken) do
    redis.pcall('DEL', over_of(one.key))
    pcall(own_key, one.key, one.place)
  end
end

local function hand_on(job)
  overtaken = {}
  for _, message in ipairs(job.messages) do enqueue(job, unpack(message)) end
end

local jobs = read_jobs()
local asked = lists()
for _, job in ipairs(jobs) do table.insert(asked[job.s], job.id) end
for s = 1, #STREAMS do
  local rows = #asked[s] < 16 and {} or redis.pcall('XPENDING', KEYS[s], GROUP, '-', '+', #asked[s] + 100, consumer)
  for _, row in ipairs(rows) do known[s][row[1]] = row[4] end
end
local there, answers, left = present(jobs), {}, {}
for at, job in ipairs(jobs) do
  answers[at] = 0
  if there[job.s][job.id] then
    there[job.s][job.id] = nil
    local ok, failure = pcall(hand_on, job)
    if ok then
      remove(job.s, job.id, job.count)
      left[#left + 1], answers[at] = job, 1
    else
      take_back(job)
      answers[at] = text_of(failure)
    end
  end
end
for s = 1, #STREAMS do
  if #leaving[s] > 0 then leave(s) end
end
for _, job in ipairs(left) do free_key(job.key, job.own) end
if #with_strikes > 0 then redis.pcall('HDEL', STRIKES, unpack(with_strikes)) end
return answers
