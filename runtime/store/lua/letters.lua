#!lua flags=no-writes
-- What dead letters say of themselves, short, a bounded part of them: nothing is written. ARGV: 'dead' or 'trash'; how: 'older' than an id,
-- the newest first, 'newer' than one, the oldest first, or 'at' these places; how many bytes of each payload are wanted; then the id, or
-- the places ('+' and '-' for all).
-- Reply: 1 when all was looked at; for 'at' how many places were; then a list per letter: its place, the fields of TOLD, its error, 1 where
-- it has a stack, the last own frame of that, bytes of all fields, bytes of the payload and its beginning; and for 'at' why it could not
-- be replayed now ('' where it could: 'unreadable', 'left-out', 'owned').

local LOOKS = 30 -- measured: so many small letters are 0.3 to 0.8 ms, with stacks of twelve frames 0.5 to 1.0 ms
local BYTES = 131072 -- of letters that are read, at least one; measured: well below the same
local PAGE = 16 -- read at once, as in a step of an operation
local MAX_ERROR, MAX_TEXT = 200, 128 -- guesses: a line; an id or a name
local MAX_STACK, MAX_FRAMES = 4096, 30 -- bytes at the end of a stack, and frames in them: guesses, more than most have

local TOLD = {
  'id', 'type', 'dead_reason', 'dead_by', 'dead_app', 'dead_attempts', 'dead_at', 'dead_from', 'dead_trace', 'key', 'exp', 'v', 'ct', 'x-op',
}

local key = ARGV[1] == 'trash' and PREFIX .. 'trash' or DEAD
local how, args_bytes = ARGV[2], tonumber(ARGV[3])

local PLAIN = {'/site-packages/', '/dist-packages/', '/lib/python3', '<frozen', '/runtime/worker/'}
local function is_own(file)
  for i = 1, #PLAIN do
    if string.find(file, PLAIN[i], 1, true) then return false end
  end
  return not string.find(file, '/runtime/[%w_]+%.py$')
end

-- The last frame that is neither the runtime's nor a library's, else the last one: 'file:line function'. It is looked for from the end:
-- to match all frames of a stack would be two thirds of the time of a letter.
local function own_frame(stack)
  local rest, last = string.sub(stack, -MAX_STACK), nil
  for _ = 1, MAX_FRAMES do
    local at = string.match(rest, '^.*()File "')
    if not at then break end
    local file, line, name = string.match(rest, '^File "([^"\n]*)", line (%d+), in ([^\n]*)', at)
    if file then
      local is_ours = is_own(file)
      if is_ours or not last then
        last = string.sub(file, -MAX_TEXT) .. ':' .. string.sub(line, 1, 9) .. ' ' .. string.sub(name, 1, MAX_TEXT)
      end
      if is_ours then return last end
    end
    rest = string.sub(rest, 1, at - 1)
  end
  return last or ''
end

-- Bytes that begin within a character of UTF-8 are dropped from the end of a text that was cut.
local function cut(text, most)
  if #text <= most then return text end
  local last = most
  while last > 0 and last > most - 4 and string.byte(text, last + 1) >= 128 and string.byte(text, last + 1) < 192 do last = last - 1 end
  return string.sub(text, 1, last)
end

local function stays(named)
  local trouble = trouble_with_letter(named)
  if trouble then return trouble end
  return named.key and #named.key <= 512 and not key_is_free(named.key, '') and 'owned' or ''
end

local answer = {0, 0}
local function tell(place, fields)
  local named, size = by_name(fields), bytes_of(fields)
  local told, stack, data = {place}, named.dead_stack or '', named.data or ''
  for i = 1, #TOLD do
    local text = named[TOLD[i]] or ''
    told[i + 1] = #text > MAX_TEXT and cut(text, MAX_TEXT) or text
  end
  local n = #TOLD + 1
  told[n + 1], told[n + 2], told[n + 3] = cut(named.dead_error or '', MAX_ERROR), stack == '' and '0' or '1', own_frame(stack)
  told[n + 4], told[n + 5], told[n + 6] = size, #data, cut(data, args_bytes)
  if how == 'at' then told[n + 7] = stays(named) end
  answer[#answer + 1] = told
  return size
end

local left, bytes = LOOKS, BYTES
if how == 'at' then
  for i = 4, #ARGV do
    if left == 0 or bytes <= 0 then return answer end
    local fields = fields_of(key, ARGV[i])
    if fields then bytes = bytes - tell(ARGV[i], fields) end
    left, answer[2] = left - 1, answer[2] + 1
  end
  answer[1] = 1
  return answer
end

local at, page, read = ARGV[4], 1, 0
local is_newer = how == 'newer'
while left > 0 and bytes > 0 do
  local from = (at == '+' or at == '-') and at or '(' .. at
  local rows = redis.call(is_newer and 'XRANGE' or 'XREVRANGE', key, from, is_newer and '+' or '-', 'COUNT', page)
  for _, row in ipairs(rows) do
    if left == 0 or bytes <= 0 then return answer end
    local size = tell(row[1], row[2])
    at, left, bytes, read = row[1], left - 1, bytes - size, read + size
  end
  if #rows < page then
    answer[1] = 1
    return answer
  end
  page = math.max(1, math.min(PAGE, 2 * page, left, math.floor(bytes * (LOOKS - left) / math.max(1, read))))
end
return answer
