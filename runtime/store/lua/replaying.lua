-- How a dead letter goes back to its stream, for the scripts that send letters back: one of them, or many.

-- Is this letter one that cannot run again? 'unreadable' when it names no stream or holds no message, 'left-out' when its payload was
-- too large to be kept; else nil, and the number of its stream. `by_name` has its fields by their names.
local function trouble_with_letter(by_name)
  local reason, from, s = by_name.dead_reason, string.match(by_name.dead_from or '', '^([^/]+)/'), nil
  for i = 1, #STREAMS do
    if from == STREAMS[i] then s = i end
  end
  if reason == 'too-large' and by_name.dead_left_out then return 'left-out' end
  -- Times that we note ourselves dead-letter no job; a release before this one dead-lettered jobs for them.
  local why = reason == 'unreadable' and by_name.dead_error or ''
  local is_for_a_time = string.find(why, '`first_at`', 1, true) or string.find(why, '`snoozed_at`', 1, true)
  local is_unreadable = reason == 'unreadable' and not is_for_a_time
  if not s or not by_name.type or is_unreadable then return 'unreadable' end
  return nil, s
end

-- What a letter's failed attempts left, with a line more that says that their lives end here; as it is where there is no space.
local MAX_TRIES = 2048 -- as in tries.py
local function tries_until(now, tries)
  local more = '\n0\t' .. ms(now)
  return #tries + #more <= MAX_TRIES and tries .. more or tries
end

-- The fields of a letter that its message does not have again, beside those of its death.
local DROPPED = {a = true, at = true, snoozed_at = true, first_at = true, ['x-op'] = true}

-- Send a letter back with its id and a fresh count of attempts; `operation` is the one that does so, or nil. Returns why it stays, as
-- above, or 'owned' when another live job owns its key; else nil and the new entry's id. The caller deletes the letter: that comes last.
-- The attempt that `dead_trace` names is the one that the next one says it comes after, as with a retry.
local function replay_letter(fields, by_name, now, operation)
  local trouble, s = trouble_with_letter(by_name)
  if trouble then return trouble end
  local key = by_name.key
  if key and not key_is_free(key, '') then return 'owned' end
  local exp = tonumber(by_name.exp or '')
  local is_over = exp and exp <= now
  local tried = by_name.dead_trace
  local message, size = {}, 0
  local function note(name, value)
    message[size + 1], message[size + 2] = name, value
    size = size + 2
  end
  for i = 1, #fields, 2 do
    local name = fields[i]
    local is_dropped = DROPPED[name] or string.sub(name, 1, 5) == 'dead_' or name == 'exp' and is_over or name == 'tried' and tried
    if not is_dropped then note(name, name == 'e' and tries_until(now, fields[i + 1]) or fields[i + 1]) end
  end
  if by_name.id and not by_name['x-origin'] then note('x-origin', by_name.id) end
  if operation then note('x-op', operation) end
  if tried then note('tried', tried) end
  note('first_at', first_time(now, by_name.first_at, string.match(by_name.dead_from, '/(%d+)%-')))
  local entry = redis.call('XADD', KEYS[s], '*', unpack(message))
  if key then own_key(key, STREAMS[s] .. ' ' .. entry) end
  -- What it died of is not what became of it any more; who waits for it is to hear that.
  if by_name.id then redis.pcall('DEL', PREFIX .. 'results:' .. by_name.id) end
  return nil, entry
end
