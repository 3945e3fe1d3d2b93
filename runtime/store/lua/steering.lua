-- What people do to one job, wherever it is: `cancel`, `now` (run now) and `priority` (the argument is its name). Behind common.lua.
-- Each returns an answer, and the id of a job of which it changed anything, for the audit:
--   cancelled          a dead letter now         asked <consumer>   that worker has it, and was asked to end it
--   moved              done as ordered           same               it waits so already
--   held <consumer>    not moved: that worker has it, or it is a suspect in that lot
--   gone               no job is there           full               too many were asked of workers at once: not asked

local MAX_MARKS, MARK_LIFE_MS = 10000, 24 * 3600000 -- guesses: all workers read new ones; no worker takes longer to hear of one
local HEAL = 100 -- a guess: marks that are looked at where there are too many

local function tell_workers()
  if type(redis.pcall('HINCRBY', CONTROL, 'v', 1)) ~= 'number' then redis.pcall('HSET', CONTROL, 'v', ms(now_ms())) end
end

-- Does nobody have the job any more that a mark is about? One that ended before its worker had heard of the mark leaves it behind.
local function is_void(place)
  local name, id = string.match(place, '^(%a+)/(%d+%-%d+)$')
  for s = 1, #STREAMS do
    if STREAMS[s] == name then
      local rows = redis.pcall('XPENDING', KEYS[s], GROUP, id, id, 1)
      return not rows.err and #rows == 0
    end
  end
  return true
end

local function has_space()
  if redis.call('ZCARD', CANCELS) < MAX_MARKS then return true end
  for _, place in ipairs(redis.call('ZRANDMEMBER', CANCELS, HEAL)) do
    if is_void(place) then redis.call('ZREM', CANCELS, place) end
  end
  return redis.call('ZCARD', CANCELS) < MAX_MARKS
end

-- Ask whoever has this entry to end it. Scripts obey the mark too, so it is in force whatever becomes of the worker. A mark is for one
-- entry, so it hits no later job.
local function ask_to_end(s, id, consumer, job_id, by)
  local place, now = stands_at(s, id), now_ms()
  if redis.call('ZSCORE', CANCELS, place) then return 'asked ' .. consumer end
  redis.call('ZREMRANGEBYSCORE', CANCELS, '-inf', ms(now - MARK_LIFE_MS))
  if not has_space() then return 'full' end
  redis.call('ZADD', CANCELS, ms(now), place)
  redis.call('PEXPIRE', CANCELS, MARK_LIFE_MS)
  redis.call('SET', asked_by(place), by, 'PX', MARK_LIFE_MS)
  tell_workers()
  return 'asked ' .. consumer, job_id
end

local function cancel_due(member, record, packed, by)
  local fields = {}
  for i = 3, record and #record or 0 do fields[#fields + 1] = record[i] end
  if #fields == 0 then fields = {'raw', packed} end
  local job_id, key = field(fields, 'id') or member, field(fields, 'key')
  add_cancelled(fields, member, 'cancelled by ' .. by, (record and record[2] or 'due') .. '/' .. member)
  redis.call('HDEL', MSG, member)
  redis.call('ZREM', DUE, member)
  free_key(key, 'due ' .. member)
  return 'cancelled', job_id
end

local function steer_due(verb, by, argument, member)
  local packed = redis.call('HGET', MSG, member)
  if not packed then return 'gone' end
  local record = unpack_record(packed)
  local job_id = record and field(record, 'id') or member
  if verb == 'cancel' then return cancel_due(member, record, packed, by) end
  if verb == 'now' then
    if redis.call('ZADD', DUE, 'LT', 'CH', ms(now_ms()), member) == 0 then return 'same' end
    return 'moved', job_id
  end
  if not record or record[2] == argument then return 'same' end -- what cannot be read goes to the dead letters at its time
  record[2] = argument
  redis.call('HSET', MSG, member, cmsgpack.pack(record))
  return 'moved', job_id
end

-- Does this message wait for a time that no worker has looked at yet? A plain XADD may bring one.
local function waits_for_time(fields)
  local at = field(fields, 'at') or ''
  return string.match(at, '^%d+$') and tonumber(at) > now_ms()
end

-- To the end of a stream, mostly another, where it is unread; it keeps the id and birth that its entry gave it.
local function change_stream(s, id, fields, to, job_id)
  if not field(fields, 'id') then fields[#fields + 1], fields[#fields + 2] = 'id', job_id end
  if not field(fields, 'first_at') then
    fields[#fields + 1], fields[#fields + 2] = 'first_at', first_time(now_ms(), string.match(id, '^%d+'))
  end
  if #fields > 2 * MAX_FIELDS then error('more fields than a message may have') end
  for t = 1, #STREAMS do
    if STREAMS[t] == to then
      local entry = redis.call('XADD', KEYS[t], '*', unpack(fields))
      move_key(fields, STREAMS[s] .. ' ' .. id, to .. ' ' .. entry)
      redis.call('XACK', KEYS[s], GROUP, id)
      redis.call('XDEL', KEYS[s], id)
    end
  end
  return 'moved', job_id
end

local function steer_entry(verb, by, argument, s, id)
  local fields = fields_of(KEYS[s], id)
  if not fields then return 'gone' end
  local job_id = field(fields, 'id') or STREAMS[s] .. '-' .. id
  local row = redis.pcall('XPENDING', KEYS[s], GROUP, id, id, 1)[1]
  if row and string.sub(row[2], 1, 1) ~= '~' then
    if verb == 'cancel' then return ask_to_end(s, id, row[2], job_id, by) end
    return 'held ' .. row[2]
  end
  if verb == 'cancel' then
    bury(s, id, 'cancelled by ' .. by)
    return 'cancelled', job_id
  end
  if verb == 'now' and not waits_for_time(fields) or STREAMS[s] == argument then return 'same' end
  if row and row[4] > 0 then return 'held ' .. row[2] end -- on another stream its deaths would be forgotten
  if verb == 'now' then return change_stream(s, id, without(fields, 'at'), STREAMS[s], job_id) end
  return change_stream(s, id, fields, argument, job_id)
end
