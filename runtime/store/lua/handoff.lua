#!lua
-- Finished jobs leave, and what they hand on is enqueued in the same step; where a job has left before, nothing of it is.
-- ARGV: consumer, or '' for no fence; then per job: stream, entry, count, key ('' where none), how many it hands on, and per message of
-- these: stream, at in ms ('' for now), how many words its fields and values have, these in turn.
-- Reply: per job 1 gone, 0 refused or gone before, or an error text: then it stays, and nothing of what it hands on does.
-- Order per job: the messages as `send` stores them, then the entry. The job's key is free for them.

local consumer, now = ARGV[1], now_ms()
local added -- the places of what one job has enqueued, to be taken back where the rest of it fails

local function enqueue(s, due, fields, own, entry)
  local key = field(fields, 'key')
  if key and is_spare(s, due, fields, key, own, now) then return end
  local place
  if due == '' then
    place = STREAMS[s] .. ' ' .. redis.call('XADD', KEYS[s], '*', unpack(fields))
  else
    place = delay(s, due, fields, field(fields, 'id'), ms(now), entry)
  end
  added[#added + 1] = place
  if key then pcall(own_key, key, place, due) end
end

-- What was folded into another job stays so: it is folded into it again by the next try. A mark that names what is gone is void.
local function take_back()
  for _, place in ipairs(added) do
    local where, id = string.match(place, '^(%S+) (.+)$')
    if where == 'due' then
      redis.pcall('ZREM', DUE, id)
      redis.pcall('HDEL', MSG, id)
    else
      redis.pcall('XDEL', PREFIX .. where, id)
    end
  end
end

local function leave_behind(s, id, count, key, messages)
  local own = STREAMS[s] .. ' ' .. id
  for _, message in ipairs(messages) do enqueue(message[1], message[2], message[3], own, stands_at(s, id)) end
  redis.call('XACK', KEYS[s], GROUP, id)
  redis.call('XDEL', KEYS[s], id)
  if count > 1 then redis.pcall('HDEL', STRIKES, stands_at(s, id)) end
  free_key(key, own)
end

-- Is the entry there, and pending: with us by this count, where there is a fence? One that was deleted by hand leaves the list.
local function is_ours(s, id, count)
  local row = redis.call('XPENDING', KEYS[s], GROUP, id, id, 1)[1]
  if not row or (consumer ~= '' and (row[2] ~= consumer or row[4] ~= count)) then return false end
  return #redis.call('XCLAIM', KEYS[s], GROUP, row[2], 0, id, 'JUSTID') > 0
end

local function hand_on(s, id, count, key, messages)
  if not is_ours(s, id, count) then return 0 end
  local ok, failure = pcall(leave_behind, s, id, count, key, messages)
  if ok then return 1 end
  take_back()
  error(failure)
end

local answers, at = {}, 2
while at <= #ARGV do
  local s, id, count, key = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3]
  local messages = {}
  local first = at + 5
  for i = 1, tonumber(ARGV[at + 4]) do
    local size = tonumber(ARGV[first + 2])
    messages[i] = {tonumber(ARGV[first]), ARGV[first + 1], {unpack(ARGV, first + 3, first + 2 + size)}}
    first = first + 3 + size
  end
  at, added = first, {}
  local ok, answer = pcall(hand_on, s, id, count, key, messages)
  answers[#answers + 1] = ok and answer or text_of(answer)
end
return answers
