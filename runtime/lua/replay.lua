#!lua
-- A dead letter back to its stream, with its id and a fresh count of attempts.
-- ARGV: letter. Reply: the new entry's id; 'gone' when there is no such letter; 'unreadable' when it names no stream or holds no
-- message; 'owned' when another live job owns its key.
-- Order: XADD, the key's mark, then the letter.

local letter = ARGV[1]
local now = now_ms()
local fields = fields_of(DEAD, letter)
if not fields then return 'gone' end

local from = field(fields, 'dead_from') or ''
local s
for i = 1, 4 do
  if string.match(from, '^([^/]+)/') == STREAMS[i] then s = i end
end
if not s or not field(fields, 'type') or field(fields, 'dead_reason') == 'unreadable' then return 'unreadable' end

local message, key = {}, field(fields, 'key')
local id, exp = field(fields, 'id'), tonumber(field(fields, 'exp') or '')
local dropped = {a = true, at = true, snoozed_at = true}
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
if not field(fields, 'first_at') then
  message[#message + 1] = 'first_at'
  message[#message + 1] = string.match(from, '/(%d+)%-') or ms(now)
end
if key and not key_is_free(key, '') then return 'owned' end
local entry = redis.call('XADD', KEYS[s], '*', unpack(message))
if key then own_key(key, STREAMS[s] .. ' ' .. entry) end
redis.call('XDEL', DEAD, letter)
return entry
