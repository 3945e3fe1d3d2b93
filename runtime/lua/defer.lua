#!lua flags=allow-oom
-- Held jobs to the delayed ones; a job that is no longer ours is left alone.
-- ARGV: consumer, then per job: stream, entry, count, kind ('retry', 'snooze', 'at'), delay or time in ms, job id, failures.
-- Reply: per job 1 moved, 0 refused, or an error text.
-- Order: message, then its time, then the key's mark, last the entry: an error midway leaves the job twice, never nowhere.

local consumer = ARGV[1]
local now = now_ms()

return each(2, 7, function(i)
  local s = tonumber(ARGV[i])
  local stream, id, count = KEYS[s], ARGV[i + 1], tonumber(ARGV[i + 2])
  local kind, job_id, failures = ARGV[i + 3], ARGV[i + 5], ARGV[i + 6]
  if not holds(stream, id, consumer, count) then return 0 end
  local fields = fields_of(stream, id)
  if not fields then
    redis.call('XACK', stream, GROUP, id)
    return 0
  end

  local record = {'stream', STREAMS[s], 'id', job_id}
  local first_at, snoozed_at
  for f = 1, #fields, 2 do
    local name, value = fields[f], fields[f + 1]
    if name == 'first_at' then first_at = value end
    if name == 'snoozed_at' then snoozed_at = value end
    if name ~= 'id' and name ~= 'at' and name ~= 'a' and name ~= 'first_at' and name ~= 'snoozed_at' then
      record[#record + 1] = name
      record[#record + 1] = value
    end
  end
  local function note(name, value)
    record[#record + 1] = name
    record[#record + 1] = value
  end
  if failures ~= '0' then note('a', failures) end
  note('first_at', first_at or string.match(id, '^%d+'))
  if kind == 'snooze' then snoozed_at = snoozed_at or ms(now) end
  if snoozed_at then note('snoozed_at', snoozed_at) end

  local member = job_id
  if redis.call('HEXISTS', MSG, member) == 1 then member = job_id .. '#' .. stands_at(s, id) end
  local due = tonumber(ARGV[i + 4])
  if kind ~= 'at' then due = now + due end
  redis.call('HSET', MSG, member, cmsgpack.pack(record))
  redis.call('ZADD', DUE, ms(due), member)
  move_key(fields, STREAMS[s] .. ' ' .. id, 'due ' .. member)
  remove(s, id, count)
  return 1
end)
