#!lua flags=allow-oom
-- Held entries to the dead letters, with every field they came with; an entry that is no longer ours is left alone.
-- ARGV: consumer, then per entry: stream, entry, count, reason, error, stack, attempts, job id ('' when unreadable).
-- Reply: per entry 1 moved, 0 refused, or an error text.
-- Order: the letter, then the entry, and the mark of its key: a letter owns none. More than 512 fields become one packed field `raw`.

local consumer = ARGV[1]
local now = ms(now_ms())

look_up(2, 8, consumer)
return each(2, 8, function(i)
  local s = tonumber(ARGV[i])
  local stream, id, count, job_id = KEYS[s], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 7]
  if not holds(s, id, consumer, count) then return 0 end
  local fields = fields_of(stream, id)
  if not fields then
    redis.call('XACK', stream, GROUP, id)
    return 0
  end
  local notes = {
    'dead_reason', ARGV[i + 3], 'dead_error', ARGV[i + 4], 'dead_stack', ARGV[i + 5], 'dead_attempts', ARGV[i + 6],
    'dead_from', stands_at(s, id), 'dead_at', now,
  }
  if job_id ~= '' and not field(fields, 'id') then
    table.insert(notes, 1, job_id)
    table.insert(notes, 1, 'id')
  end
  local key = field(fields, 'key') -- add_letter may write into the list
  add_letter(fields, notes)
  remove(s, id, count)
  free_key(key, STREAMS[s] .. ' ' .. id)
  return 1
end)
