#!lua flags=allow-oom
-- Held entries to the dead letters, with every field they came with; an entry that is no longer ours is left alone.
-- ARGV: consumer or lot that holds them, worker that writes, version of its application, then per entry: stream, entry, count,
-- reason, error, stack, attempts, job id ('' when unreadable), traceparent of the span that tells of it ('' where none is recorded),
-- for how many ms to keep what for those who wait for a result of the job (0 where its type has none), and what its failed attempts
-- left ('' where its message says that already).
-- Reply: per entry 1 moved, 0 refused, or an error text.
-- Order: the letter, then the entry, and the mark of its key: a letter owns none. More than 512 fields become one packed field `raw`.
-- Of what is dead for its size, long values are left out where all together are longer than a person would read:
-- `dead_left_out` names them with their bytes.

local consumer, by, app = ARGV[1], ARGV[2], ARGV[3]
local FIRST, WIDTH = 4, 12
local now = ms(now_ms())

local MAX_LETTER, MAX_VALUE, MAX_NAMED = 1048576, 4096, 10 -- guesses: bytes of a letter, of a value that stays, names of what is left out
local function shortened(fields, notes)
  local kept, left_out, more, size = {}, {}, 0, 0
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if #name + #value <= MAX_VALUE and size < MAX_LETTER then
      kept[#kept + 1], kept[#kept + 2] = name, value
      size = size + #name + #value
    elseif #left_out < MAX_NAMED then
      left_out[#left_out + 1] = string.sub(name, 1, 64) .. ' ' .. #value
    else
      more = more + 1
    end
  end
  if more > 0 then left_out[#left_out + 1] = more .. ' more' end
  notes[#notes + 1], notes[#notes + 2] = 'dead_left_out', table.concat(left_out, ', ')
  return kept
end

local MAX_ID = 128 -- as the codec has it
-- A failure of it, as where this user may not, leaves the letter as it is.
local function tell(id, life_ms, text)
  if life_ms == '0' or #id > MAX_ID then return end
  redis.pcall('SET', PREFIX .. 'results:' .. id, text, 'PX', life_ms)
  redis.pcall('PUBLISH', PREFIX .. 'results', id)
end

look_up(FIRST, WIDTH, consumer)
return each(FIRST, WIDTH, function(i)
  local s = tonumber(ARGV[i])
  local stream, id, count, job_id, trace = KEYS[s], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 7], ARGV[i + 8]
  if not holds(s, id, consumer, count) then return 0 end
  local fields = fields_of(stream, id)
  if not fields then
    redis.call('XACK', stream, GROUP, id)
    return 0
  end
  local notes = {
    'dead_reason', ARGV[i + 3], 'dead_error', ARGV[i + 4], 'dead_stack', ARGV[i + 5], 'dead_attempts', ARGV[i + 6],
    'dead_from', stands_at(s, id), 'dead_at', now, 'dead_by', by,
  }
  if job_id ~= '' and not field(fields, 'id') then
    table.insert(notes, 1, job_id)
    table.insert(notes, 1, 'id')
  end
  if app ~= '' then notes[#notes + 1], notes[#notes + 2] = 'dead_app', app end
  if ARGV[i + 11] ~= '' then
    fields = without(fields, 'e')
    notes[#notes + 1], notes[#notes + 2] = 'e', ARGV[i + 11]
  end
  if trace ~= '' then notes[#notes + 1], notes[#notes + 2] = 'dead_trace', trace end
  local key, own_id = field(fields, 'key'), field(fields, 'id') or job_id -- add_letter may write into the list
  if ARGV[i + 3] == 'too-large' and bytes_of(fields) > MAX_LETTER then fields = shortened(fields, notes) end
  add_letter(fields, notes)
  remove(s, id, count)
  free_key(key, STREAMS[s] .. ' ' .. id)
  tell(own_id, ARGV[i + 9], ARGV[i + 10])
  return 1
end)
