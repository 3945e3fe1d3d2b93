#!lua flags=allow-oom
-- Give a stream that an id far ahead has closed a fresh key, then move up to n of its entries there; repeated until none is left.
-- ARGV: position among KEYS of a stream or of the dead letters, how far ahead of now its last id must lie in ms, n, 1 where a stream may
-- be set aside.
-- Reply: entries moved, entries left in what is set aside, 1 when this call set the stream aside.
-- The old key is set aside whole, with its group: what its consumers hold is no lease on the fresh one, so jobs that run at that moment
-- are cut off and run again. All else waits in its old order. A job keeps its id and birth; deliveries count anew. A letter gets
-- another place, which is how people name it.
-- The fresh one may be closed again before all is moved: then it stands behind what is set aside already, as `:closed:2` and so on,
-- and moves up when that is empty.
-- Order per entry: XADD, the key's mark, XDEL. Killed anywhere, what is left stands in the closed streams, for the next call.

local s, ahead_ms, n, may_set_aside = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local MAX_BYTES, PAGE = 1000000, 10 -- guesses: a call moves about a megabyte, a few milliseconds of the server
local stream, closed, is_dead = KEYS[s], closed_name(s), KEYS[s] == DEAD
local now = now_ms()
local is_new = 0

local function aside(at)
  return at == 1 and closed or closed .. ':' .. at
end

-- 'stream', 'none', or an error that names the key: those of the commands below do not.
for _, key in ipairs({closed, stream}) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'stream' and kind ~= 'none' and redis.call('EXISTS', closed) == 1 then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. kind .. ' and no stream: RENAME it, then call again')
  end
end

if may_set_aside and last_ms_of(stream) > now + ahead_ms then
  local free = 1
  while redis.call('EXISTS', aside(free)) == 1 do free = free + 1 end
  redis.call('RENAME', stream, aside(free))
  is_new = 1
end
if redis.call('EXISTS', closed) == 0 then return {0, 0, 0} end
if not is_dead and redis.call('EXISTS', stream) == 0 then redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM') end

local function move(id, fields)
  if is_cancelled(s, id) then -- at its new place nobody would know
    local key = field(fields, 'key')
    add_cancelled(fields, STREAMS[s] .. '-' .. id, why_cancelled(stands_at(s, id)), stands_at(s, id))
    free_key(key, STREAMS[s] .. ' ' .. id)
    redis.pcall('ZREM', CANCELS, stands_at(s, id))
    redis.pcall('DEL', asked_by(stands_at(s, id)))
    return
  end
  if not field(fields, 'id') then
    fields[#fields + 1] = 'id'
    fields[#fields + 1] = STREAMS[s] .. '-' .. id
  end
  if not field(fields, 'first_at') then
    fields[#fields + 1] = 'first_at'
    fields[#fields + 1] = first_time(now, string.match(id, '^%d+'))
  end
  if #fields > 2 * MAX_FIELDS + 16 then
    add_letter(fields, {
      'dead_reason', 'too-large', 'dead_error', 'more fields than a message may have', 'dead_stack', '', 'dead_attempts', '0',
      'dead_from', stands_at(s, id), 'dead_at', ms(now),
    })
  else
    local fresh = redis.call('XADD', stream, '*', unpack(fields))
    move_key(fields, STREAMS[s] .. ' ' .. id, STREAMS[s] .. ' ' .. fresh)
  end
end

local note_names = {}
for _, name in ipairs(NOTES) do note_names[name] = true end

local function move_letter(id, fields)
  local message, notes, taken = {}, {}, {}
  for i = 1, #fields, 2 do
    local name = fields[i]
    local is_note = note_names[name] and not taken[name]
    local list = is_note and notes or message
    taken[name] = true
    list[#list + 1], list[#list + 2] = name, fields[i + 1]
  end
  add_letter(message, notes)
end

local moved, bytes = 0, 0
while moved < n and bytes < MAX_BYTES do
  local page = redis.call('XRANGE', closed, '-', '+', 'COUNT', PAGE)
  for _, entry in ipairs(page) do
    bytes = bytes + bytes_of(entry[2])
    if is_dead then move_letter(entry[1], entry[2]) else move(entry[1], entry[2]) end
    redis.call('XDEL', closed, entry[1])
    moved = moved + 1
  end
  if #page == 0 then
    redis.call('DEL', closed)
    local at = 2
    while redis.call('EXISTS', aside(at)) == 1 do
      redis.call('RENAME', aside(at), aside(at - 1))
      at = at + 1
    end
    if at == 2 then break end
  end
end

local left, at = 0, 1
while redis.call('EXISTS', aside(at)) == 1 do
  left = left + math.max(1, tonumber(redis.pcall('XLEN', aside(at))) or 1) -- an empty one is left too, until it is deleted
  at = at + 1
end
return {moved, left, is_new}
