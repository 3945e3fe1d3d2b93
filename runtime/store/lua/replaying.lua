-- How a dead letter goes back to its stream, for the scripts that send letters back: one of them, or many.

-- Is this letter one that cannot run again? 'unreadable' when it names no stream or holds no message, 'left-out' when its payload was
-- too large to be kept; else nil, and the number of its stream.
local function trouble_with_letter(fields)
  local from, reason = field(fields, 'dead_from') or '', field(fields, 'dead_reason')
  local s
  for i = 1, #STREAMS do
    if string.match(from, '^([^/]+)/') == STREAMS[i] then s = i end
  end
  if reason == 'too-large' and field(fields, 'dead_left_out') then return 'left-out' end
  -- Times that we note ourselves dead-letter no job; a release before this one dead-lettered jobs for them.
  local why = field(fields, 'dead_error') or ''
  local is_for_a_time = string.find(why, '`first_at`', 1, true) or string.find(why, '`snoozed_at`', 1, true)
  local is_unreadable = reason == 'unreadable' and not is_for_a_time
  if not s or not field(fields, 'type') or is_unreadable then return 'unreadable' end
  return nil, s
end

-- Send a letter back with its id and a fresh count of attempts; `operation` is the one that does so, or nil. Returns the new entry's id,
-- or why it stays: as above, or 'owned' when another live job owns its key.
-- The attempt that `dead_trace` names is the one that the next one says it comes after, as with a retry.
-- Order: XADD, the key's mark, then the letter.
local function replay_letter(letter, fields, now, operation)
  local trouble, s = trouble_with_letter(fields)
  if trouble then return trouble end
  local message, key = {}, field(fields, 'key')
  local id, exp = field(fields, 'id'), tonumber(field(fields, 'exp') or '')
  local tried = field(fields, 'dead_trace')
  local dropped = {a = true, at = true, snoozed_at = true, first_at = true, ['x-op'] = true, tried = tried and true}
  if exp and exp <= now then dropped.exp = true end
  local function note(name, value)
    message[#message + 1] = name
    message[#message + 1] = value
  end
  for i = 1, #fields, 2 do
    local name = fields[i]
    if not dropped[name] and string.sub(name, 1, 5) ~= 'dead_' then note(name, fields[i + 1]) end
  end
  if id and not field(fields, 'x-origin') then note('x-origin', id) end
  if operation then note('x-op', operation) end
  if tried then note('tried', tried) end
  note('first_at', first_time(now, field(fields, 'first_at'), string.match(field(fields, 'dead_from'), '/(%d+)%-')))
  if key and not key_is_free(key, '') then return 'owned' end
  local entry = redis.call('XADD', KEYS[s], '*', unpack(message))
  if key then own_key(key, STREAMS[s] .. ' ' .. entry) end
  redis.call('XDEL', DEAD, letter)
  return entry
end
