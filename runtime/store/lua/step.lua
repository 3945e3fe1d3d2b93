#!lua flags=allow-oom
-- One bounded step of one operation over many letters or jobs. Any worker may ask, and any may die: what a step did and where it stands
-- are one write. ARGV: operation.
-- Reply: its state ('gone': there is none), ms until the next step (-1: none by itself), how many were looked at, how many were acted on.
-- Before its time it does nothing. Each item is moved as its single verb moves it. What cannot go on is stopped, and says why: so no
-- operation is asked for again and again, whatever a stranger has written into it.

local LOOKS, ACTS = 100, 20 -- measured: so many replays of small letters are 0.5 to 0.9 ms, looks for what is rare less
local BYTES = 131072 -- of messages that are read, at least one; measured: a replay of 200 KB takes about a millisecond
local BACK = 100 -- newer letters looked at for the brake, a guess: five times what a step sends back
local STEPS_PER_S = 4 -- a guess: smooth, and few
local CATCH_UP_MS = 1000 -- a guess: what nobody stepped in time is made up for, but not more than that
local LOOK_MS = 0.02 -- of waiting per item looked at, a guess: what fits rarely must not keep the server busy
local CANARY, CANARY_MS = 5, 10000 -- a guess: a failing cause shows in few, and soon
local BRAKE_LEAST, BRAKE_PART = 5, 0.2 -- a guess: of what was replayed one in five died again

local id, now = ARGV[1], now_ms()
local key = operation_key(id)

-- When the next step is due. A time that is missing, or further ahead than any of ours, is none: the clock was set back, or it was lost.
local function due_ms(state)
  local due = tonumber(redis.call('ZSCORE', OPERATIONS, id) or '')
  if due and due == due and due <= now + MAX_HOLD_MS then return due end
  due = state == 'held' and now + CANARY_MS or now
  redis.call('ZADD', OPERATIONS, ms(due), id)
  return due
end

-- Most calls come too early, from workers that do not make the steps: they are not to cost much.
local state, due = redis.pcall('HGET', key, 'state'), now
if state == 'held' or state == 'running' then due = due_ms(state) end
if due > now then return {state, math.ceil(due - now), 0, 0} end

local op = read_operation(id)
if not op then
  redis.pcall('ZREM', OPERATIONS, id)
  show_to_workers(id, false)
  return {'gone', -1, 0, 0}
end
if op.state ~= 'held' and op.state ~= 'running' then
  show_to_workers(id, false)
  return {op.state or 'gone', -1, 0, 0}
end

local is_replay = op.verb == 'replay'
local counts, acted = {}, 0
local function count(name, n)
  counts[name] = (counts[name] or 0) + n
end

-- How many letters that this operation has sent back are dead again, as far as they were looked at.
local function count_returned()
  local back = {cursor = op.brake_at or op['until:dead']}
  walk_entries(back, DEAD, '+', {looks = BACK, acts = 1, bytes = BYTES}, function(_, fields)
    if field(fields, 'x-op') == id then count('died', 1) end
  end)
  op.brake_at = back.cursor
end

local function since_resume(name)
  return number_in(op, name, 0) + (counts[name] or 0) - number_in(op, 'base_' .. name, 0)
end

-- Move one of them as its single verb does; returns what became of it. Letters are deleted all at once, behind the last of them.
local leaving_letters = {}
local function act(where, member, fields, named)
  if where == 'dead' then
    if not fields then return 'gone' end
    local trouble = is_replay and replay_letter(fields, named, now, id)
    if trouble then return trouble end
    if op.verb == 'trash' then trash_letter(fields, op.by or '?') end
    leaving_letters[#leaving_letters + 1] = member
    return 'moved'
  end
  local by = (op.by or '?') .. ((op.reason or '') == '' and '' or ': ' .. op.reason)
  if where == 'due' then return steer_due(op.verb, by, op.argument, member) end
  return steer_entry(op.verb, by, op.argument, number_of_stream(where), member)
end

local DONE = {cancelled = true, asked = true, moved = true}
local function visit(budget)
  return function(where, member, fields, named)
    budget.acts, acted = budget.acts - 1, acted + 1
    local ok, answer = pcall(act, where, member, fields, named)
    local word = ok and string.match(answer, '^%S+') or 'failed'
    count(DONE[word] and 'done' or 'refused:' .. word, 1)
    if word == 'asked' then count('asked', 1) end
  end
end

-- Write down what was done and where it stands; returns ms until the next step.
local function write(looked)
  local fields = {'state', 'running', 'at', ms(op.at), 'cursor', op.cursor, 'stepped', ms(now)}
  for name, value in pairs({page = #op.members > 0 and cmsgpack.pack(op.members) or '', brake_at = op.brake_at, run = op.run}) do
    fields[#fields + 1], fields[#fields + 2] = name, value
  end
  redis.call('HSET', key, unpack(fields))
  redis.call('HINCRBY', key, 'looked', looked)
  for name, n in pairs(counts) do redis.call('HINCRBY', key, name, n) end
  redis.call('PEXPIRE', key, OPERATION_LIFE_MS)
  if op.chosen_key then redis.call('PEXPIRE', op.chosen_key, OPERATION_LIFE_MS) end
  local base = math.max(due, now - CATCH_UP_MS)
  local after = base + math.max(acted * 1000 / op.rate, looked * LOOK_MS)
  local had = since_resume('done') - (counts.done or 0)
  if is_replay and had < CANARY and since_resume('done') >= CANARY then
    after = math.max(after, now + math.min(MAX_HOLD_MS, op.canary_ms or CANARY_MS)) -- the canary had its part of the rate, too
  end
  redis.call('ZADD', OPERATIONS, string.format('%.3f', after), id)
  return math.max(0, math.ceil(after - now))
end

local function step()
  local trouble = trouble_with_operation(op)
  if trouble then
    rest_operation(id, 'stopped', trouble)
    return {'stopped', -1, 0, 0}
  end
  if op.chosen then op.chosen_key = chosen_key(id, op) end
  -- What ran at the start, or became due, and failed before its stream was walked waits for its next attempt: behind the walk.
  if op.verb == 'cancel' and op.sources[1] == 'due' and #op.sources > 1 then table.insert(op.sources, 'due') end
  local most = math.max(1, math.min(ACTS, math.floor(op.rate / STEPS_PER_S)))
  if is_replay then
    count_returned()
    local done, died = since_resume('done'), since_resume('died')
    if died >= BRAKE_LEAST and died > BRAKE_PART * done then
      redis.call('HINCRBY', key, 'died', counts.died or 0)
      redis.call('HSET', key, 'brake_at', op.brake_at)
      rest_operation(id, 'braked')
      return {'braked', -1, 0, 0}
    end
    if done < CANARY then most = math.min(most, CANARY - done) end
  end
  local budget = {looks = LOOKS, acts = most, bytes = BYTES}
  local ok, is_end = pcall(walk, op, budget, visit(budget))
  if #leaving_letters > 0 then redis.call('XDEL', DEAD, unpack(leaving_letters)) end
  if not ok then error(is_end) end
  local looked = LOOKS - budget.looks
  local wait = write(looked)
  if is_end then
    rest_operation(id, 'done')
    if op.chosen_key then redis.call('DEL', op.chosen_key) end
  end
  return {is_end and 'done' or 'running', is_end and -1 or wait, looked, acted}
end

local ok, told = pcall(step)
if ok then return told end
rest_operation(id, 'stopped', string.sub(text_of(told), 1, 500))
return {'stopped', -1, 0, 0}
