#!lua flags=allow-oom
-- What people order of operations over many letters or jobs. ARGV: verb, id, by, reason, then
--   create   for how many ms it is held, then fields of the hash and their values (operations.lua); one that is there already is left
--            alone, and refused where it is another one: the id is the caller's, and a repeat makes no second. What is meant is
--            what is there now
--   stop     the rest stays where it is; while it is held, nothing was done
--   resume   it goes on, from where it stood; where it was braked, with a few first, and what died before is forgotten
--   rate     so many per second from now on
--   drop     it ends where it is, and nothing tells of it any more
-- Reply: its state ('gone': there is none), and 1 when this changed something, else 0.
-- Order: XADD audit, the hash, its time, what tells the workers. All of it or nothing.

local MOST = 100 -- operations that are known; a guess: people look at them
local MAX_BYTES, MAX_FIELDS_OF_ONE = 4096, 64 -- a guess, as the rules have them
local verb, id, by, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local now = now_ms()

local function trouble_with_keys()
  for _, pair in ipairs({{OPERATIONS, 'zset'}, {operation_key(id), 'hash'}, {CONTROL, 'hash'}, {AUDIT, 'stream'}}) do
    local trouble = trouble_with_place(pair[1], pair[2])
    if trouble then return trouble end
  end
end

-- Forget an operation, and the list of what it is about.
local function forget_operation(name)
  local op = read_operation(name)
  if op and op.chosen then redis.call('DEL', chosen_key(name, op)) end
  redis.call('DEL', operation_key(name))
  redis.call('ZREM', OPERATIONS, name)
end

local function audit(...)
  write_audit(by, reason, {...})
end

-- Of the operations that are known, forget those that have expired, and the one that has been done for longest; is there a place?
local function make_place()
  local oldest, oldest_at
  for _, name in ipairs(redis.call('ZRANGE', OPERATIONS, 0, MOST)) do
    local told = redis.pcall('HMGET', operation_key(name), 'state', 'ended')
    local state, ended = told[1], tonumber(told[2] or '0') or 0
    if not state then
      redis.call('ZREM', OPERATIONS, name)
    elseif state == 'done' and (not oldest or ended < oldest_at) then
      oldest, oldest_at = name, ended
    end
  end
  if redis.call('ZCARD', OPERATIONS) >= MOST and oldest then forget_operation(oldest) end
  return redis.call('ZCARD', OPERATIONS) < MOST
end

local function last_id_of(key)
  local info = redis.pcall('XINFO', 'STREAM', key)
  for i = 1, info.err and 0 or #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
  return '0-0'
end

-- Is this operation another one than is asked for? Its rate may have been changed since, and what was counted be another number.
local function has_other_words(op, made)
  for name, value in pairs(made) do
    -- The list of a repeat has another name, and is as long.
    local may_differ = name == 'rate' or name == 'chosen' or name == 'total' and not made.chosen
    if not may_differ and op[name] ~= value then return true end
  end
  for name in pairs(op) do
    local is_of_filter = string.sub(name, 1, 3) == 'is:' or name == 'before' or name == 'after' or name == 'text'
    is_of_filter = is_of_filter or name == 'only' or name == 'chosen'
    if is_of_filter and not made[name] then return true end
  end
  return false
end

local verbs = {}

function verbs.create(op)
  local made, told = {}, {}
  for i = 6, #ARGV, 2 do
    made[ARGV[i]] = ARGV[i + 1]
    local is_told = ARGV[i] ~= 'verb' and ARGV[i] ~= 'chosen' and (ARGV[i] ~= 'total' or made.source == 'chosen')
    if is_told then told[#told + 1] = ARGV[i] .. ' ' .. ARGV[i + 1] end
  end
  if op then
    if has_other_words(op, made) then return nil, 'BADORDER there is an operation ' .. id .. ' that is about something else' end
    return op.state, 0
  end
  local hold = tonumber(ARGV[5])
  if not hold or not (hold >= 0 and hold <= MAX_HOLD_MS) then return nil, 'BADORDER it must be held for 0 to ' .. MAX_HOLD_MS .. ' ms' end
  local trouble = trouble_with_operation(made)
  if trouble then return nil, 'BADORDER ' .. trouble end
  if made.chosen and redis.call('LLEN', chosen_key(id, made)) ~= tonumber(made.total) then
    return nil, 'BADORDER the list of what was chosen is not whole'
  end
  if not make_place() then return nil, 'FULL there are ' .. MOST .. ' operations that are not done: stop and drop some' end
  audit('operate ' .. made.verb .. ' ' .. id, unpack(told))
  local flat = {unpack(ARGV, 6)}
  for _, name in ipairs(made.sources) do
    local key = name == 'dead' and DEAD or name ~= 'due' and KEYS[number_of_stream(name)]
    if key then
      flat[#flat + 1] = 'until:' .. name
      flat[#flat + 1] = last_id_of(key)
    end
  end
  if made.chosen then
    redis.call('PEXPIRE', chosen_key(id, made), OPERATION_LIFE_MS)
    if made.verb == 'replay' then flat[#flat + 1], flat[#flat + 2] = 'until:dead', last_id_of(DEAD) end
  end
  for _, word in ipairs({'state', 'held', 'created', ms(now), 'by', by, 'reason', reason}) do flat[#flat + 1] = word end
  redis.call('HSET', operation_key(id), unpack(flat))
  redis.call('PEXPIRE', operation_key(id), OPERATION_LIFE_MS)
  redis.call('ZADD', OPERATIONS, ms(now + hold), id)
  show_to_workers(id, made.verb)
  return 'held', 1
end

function verbs.stop(op)
  if op.state ~= 'held' and op.state ~= 'running' then return op.state, 0 end
  audit('stop ' .. id)
  rest_operation(id, 'stopped')
  return 'stopped', 1
end

function verbs.resume(op)
  if op.state ~= 'stopped' and op.state ~= 'braked' then return op.state, 0 end
  audit('resume ' .. id)
  redis.call('HSET', operation_key(id), 'state', 'running', 'error', '')
  if op.state == 'braked' then redis.call('HSET', operation_key(id), 'base_done', op.done or '0', 'base_died', op.died or '0') end
  redis.call('HDEL', operation_key(id), 'ended')
  redis.call('PEXPIRE', operation_key(id), OPERATION_LIFE_MS)
  redis.call('ZADD', OPERATIONS, ms(now), id)
  show_to_workers(id, op.verb or '?')
  return 'running', 1
end

function verbs.rate(op)
  local rate = number_in({rate = ARGV[5]}, 'rate')
  if not rate or rate < MIN_RATE or rate > MAX_RATE then
    return nil, 'BADORDER rate must be between ' .. MIN_RATE .. ' and ' .. MAX_RATE
  end
  if op.state == 'done' or op.rate == ARGV[5] then return op.state, 0 end
  audit('rate ' .. id .. ' ' .. ARGV[5])
  redis.call('HSET', operation_key(id), 'rate', ARGV[5])
  return op.state, 1
end

function verbs.drop(op)
  audit('drop ' .. id)
  forget_operation(id)
  show_to_workers(id, false)
  return 'gone', 1
end

local trouble = trouble_with_keys()
if trouble then return redis.error_reply(trouble) end
if not verbs[verb] then return redis.error_reply('BADORDER no verb ' .. tostring(verb)) end
if not string.match(id, '^[a-z0-9][a-z0-9._-]*$') or #id > 64 then return redis.error_reply('BADORDER no id of an operation') end
if not string.match(by, '^%S+$') or #by + #reason > MAX_BYTES - 64 then return redis.error_reply('BADORDER by or reason') end
if #ARGV > 5 + 2 * MAX_FIELDS_OF_ONE or verb == 'create' and #ARGV % 2 == 0 then return redis.error_reply('BADORDER fields and values') end
for i = 5, #ARGV do
  if #ARGV[i] > MAX_BYTES then return redis.error_reply('BADORDER a field and its value must be at most ' .. MAX_BYTES .. ' bytes') end
end
local op = read_operation(id)
if not op and verb ~= 'create' then return {'gone', 0} end
local state, changed = verbs[verb](op)
if not state then return redis.error_reply(changed or 'BADORDER it has no state: drop it') end
return {state, changed}
