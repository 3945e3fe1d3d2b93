#!lua
-- A dead letter back to its stream, with its id and a fresh count of attempts.
-- ARGV: letter. Reply: the new entry's id; 'gone' when there is no such letter; 'unreadable' when it names no stream or holds no
-- message; 'left-out' when its payload was too large to be kept; 'owned' when another live job owns its key.
-- The attempt that `dead_trace` names is the one that the next one says it comes after, as with a retry.
-- Order: XADD, the key's mark, then the letter.

local letter = ARGV[1]
local now = now_ms()
local fields = fields_of(DEAD, letter)
if not fields then return 'gone' end

local from = field(fields, 'dead_from') or ''
local s
for i = 1, #STREAMS do
  if string.match(from, '^([^/]+)/') == STREAMS[i] then s = i end
end
if field(fields, 'dead_reason') == 'too-large' and field(fields, 'dead_left_out') then return 'left-out' end
-- Times that we note ourselves dead-letter no job; a release before this one dead-lettered jobs for them.
local why = field(fields, 'dead_error') or ''
local is_for_a_time = string.find(why, '`first_at`', 1, true) or string.find(why, '`snoozed_at`', 1, true)
local is_unreadable = field(fields, 'dead_reason') == 'unreadable' and not is_for_a_time
if not s or not field(fields, 'type') or is_unreadable then return 'unreadable' end

local message, key = {}, field(fields, 'key')
local id, exp = field(fields, 'id'), tonumber(field(fields, 'exp') or '')
local tried = field(fields, 'dead_trace')
local dropped = {a = true, at = true, snoozed_at = true, first_at = true, tried = tried and true}
if exp and exp <= now then dropped.exp = true end
for i = 1, #fields, 2 do
  local name = fields[i]
  if not dropped[name] and string.sub(name, 1, 5) ~= 'dead_' then
    message[#message + 1] = name
    message[#message + 1] = fields[i + 1]
  end
end
if id and not field(fields, 'x-origin') then
  message[#message + 1] = 'x-origin'
  message[#message + 1] = id
end
if tried then message[#message + 1], message[#message + 2] = 'tried', tried end
message[#message + 1] = 'first_at'
message[#message + 1] = first_time(now, field(fields, 'first_at'), string.match(from, '/(%d+)%-'))
if key and not key_is_free(key, '') then return 'owned' end
local entry = redis.call('XADD', KEYS[s], '*', unpack(message))
if key then own_key(key, STREAMS[s] .. ' ' .. entry) end
redis.call('XDEL', DEAD, letter)
return entry
