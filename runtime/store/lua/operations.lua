-- What the scripts of operations share: an operation is a verb over many letters or jobs, in a hash `operation:<id>`, walked through in
-- bounded steps. Fields of people: verb, argument (a priority's name), source (names of places, in the order in which they are walked:
-- 'dead', or some of 'due' and the streams; or 'chosen' alone: the places in the list `operation:<id>:<chosen>`, which never change),
-- rate per second, canary_ms, before and after (ms), text, reason, by, total, and
-- `is:<field>` for each field that must be equal. Fields of ours: state (held, running, stopped, braked, done), created, until:<source>
-- (the last id at the start), at (which source), cursor, page (members of `due` that were found and not looked at), looked, done,
-- refused:<answer>, died, brake_at, base_done and base_died (those at the last resume), stepped, ended, error.
-- What stands there may be a stranger's: it is checked before each step.

local OPERATIONS = PREFIX .. 'operations'
local OPERATION_LIFE_MS = 604800000 -- a guess: a week after its last step people still ask what became of it
local MAX_HOLD_MS = 900000 -- a guess: the longest that anything of ours waits for a next step; what lies further ahead is no time of ours
local MIN_RATE, MAX_RATE = 0.01, 20000 -- a guess, and what steps of 50 every 2.5 ms make: a third of a server's time, measured
local PAGE = 16 -- entries read at once, a guess: what is read in vain is at most so many times a message's limit
local LAST_ID = '18446744073709551615-18446744073709551615' -- there is none behind it, and the server refuses to look there
-- Each verb, and whether it is about letters.
local VERBS = {replay = true, purge = true, trash = true, cancel = false, now = false, priority = false}

local function operation_key(id)
  return PREFIX .. 'operation:' .. id
end

-- A field of an operation as a number; nil where it is none, or none that can be counted with.
local function number_in(op, name, otherwise)
  local number = tonumber(op[name] or otherwise)
  return number and number == number and number >= 0 and number <= MAX_MS and number or nil
end

local function number_of_stream(name)
  for s = 1, #STREAMS do
    if STREAMS[s] == name then return s end
  end
end

-- May what an operation is about be in such a place?
local function can_be_in(is_of_letters, name)
  if is_of_letters then return name == 'dead' end
  return name == 'due' or number_of_stream(name) ~= nil
end

-- What is wrong with an operation, or nil. Lists in `sources` and `equals` what its texts name.
local function trouble_with_operation(op)
  local is_of_letters = VERBS[op.verb]
  if is_of_letters == nil then return 'no verb ' .. tostring(op.verb) end
  op.sources, op.equals = {}, {}
  for name in string.gmatch(op.source or '', '%S+') do
    local is_known = can_be_in(is_of_letters, name) or name == 'chosen' and op.chosen and #op.sources == 0
    if not is_known or #op.sources > #STREAMS then return op.verb .. ': no such source: ' .. name end
    table.insert(op.sources, name)
  end
  if #op.sources == 0 then return op.verb .. ': no source' end
  if op.chosen and (op.source ~= 'chosen' or not string.match(op.chosen, '^%x+$')) then return op.verb .. ': chosen must name a list' end
  if op.only and op.only ~= 'waiting' and op.only ~= 'running' then return 'no state ' .. op.only end
  if op.verb == 'priority' and not number_of_stream(op.argument) then return 'no priority ' .. tostring(op.argument) end
  local rate = number_in(op, 'rate')
  if not rate or rate < MIN_RATE or rate > MAX_RATE then return 'rate must be between ' .. MIN_RATE .. ' and ' .. MAX_RATE end
  for _, name in ipairs({'canary_ms', 'before', 'after', 'at', 'looked', 'done', 'asked', 'died', 'base_done', 'base_died', 'created'}) do
    if op[name] and not number_in(op, name) then return name .. ' must be a number' end
  end
  for name, value in pairs(op) do
    local is_id = name == 'brake_at' or string.sub(name, 1, 6) == 'until:'
    if is_id and not string.match(value, '^%d+%-%d+$') then return name .. ' must be an id' end
    local equal = string.match(name, '^is:(.+)$')
    if equal then table.insert(op.equals, {equal, value}) end
  end
end

-- The places that an operation is about, where they were chosen one by one.
local function chosen_key(id, op)
  return operation_key(id) .. ':' .. op.chosen
end

-- An operation as a table of its fields; nil where there is none, or another type in its place.
local function read_operation(id)
  local flat = redis.pcall('HGETALL', operation_key(id))
  if flat.err or #flat == 0 then return nil end
  local op = {}
  for i = 1, #flat, 2 do op[flat[i]] = flat[i + 1] end
  return op
end

-- Tell all workers whether there is a step to be made: `is_active` is its verb, or false.
local function show_to_workers(id, is_active)
  local name = 'op:' .. id
  local changed = is_active and redis.call('HSET', CONTROL, name, is_active) or redis.call('HDEL', CONTROL, name)
  if changed == 0 then return end
  local v = redis.call('HGET', CONTROL, 'v') or '0'
  local is_ours = string.match(v, '^%d+$') and #v < 16
  redis.call('HSET', CONTROL, 'v', ms(is_ours and v + 1 or now_ms())) -- a stranger's: what differs is all that counts
end

-- An operation makes no step by itself from now on.
local function rest_operation(id, state, why)
  redis.call('HSET', operation_key(id), 'state', state, 'ended', ms(now_ms()), 'error', why or '')
  redis.call('PEXPIRE', operation_key(id), OPERATION_LIFE_MS)
  redis.call('ZADD', OPERATIONS, 'inf', id)
  show_to_workers(id, false)
end

-- Is the first entry id later than the other? They may have more digits than a number bears.
local function is_later(one, other)
  local ms_1, seq_1 = string.match(one, '^0*(%d+)%-0*(%d+)$')
  local ms_2, seq_2 = string.match(other, '^0*(%d+)%-0*(%d+)$')
  if not ms_1 or not ms_2 then return false end
  if #ms_1 ~= #ms_2 then return #ms_1 > #ms_2 end
  if ms_1 ~= ms_2 then return ms_1 > ms_2 end
  if #seq_1 ~= #seq_2 then return #seq_1 > #seq_2 end
  return seq_1 > seq_2
end

-- Is this letter or job meant? `where` is 'dead', 'due' or a stream's name, `named` has its fields by their names. A job counts as sent
-- when it was first; one that came to a stream after the start is meant where it was sent before: it waited in `due` then.
local function is_meant(op, where, id, named)
  local born = tonumber(named[where == 'dead' and 'dead_at' or 'first_at'] or string.match(id, '^(%d+)%-%d+$') or '') or 0
  local last, created = op['until:' .. where], number_in(op, 'created', 0)
  if where == 'due' and born > created then return false end
  local is_new = where ~= 'due' and where ~= 'dead' and last and is_later(id, last)
  if is_new and not (named.first_at and born <= created) then return false end
  if op.before and born > tonumber(op.before) or op.after and born < tonumber(op.after) then return false end
  for _, equal in ipairs(op.equals) do
    local value = named[equal[1]]
    if equal[1] == 'priority' then
      value = where
      if where == 'dead' then value = string.match(named.dead_from or '', '^([^/]+)/') end
      if where == 'due' then value = named.stream end
    end
    if (value or '') ~= equal[2] then return false end
  end
  return not op.text or string.find(named.dead_error or '', op.text, 1, true) ~= nil
end

-- Is this entry in the state that is asked for? In a lot it waits: its holder lives in no worker.
local function is_in_state(op, where, id)
  if not op.only then return true end
  local row = redis.pcall('XPENDING', KEYS[number_of_stream(where)], GROUP, id, id, 1)[1]
  local is_held = row ~= nil and string.sub(row[2], 1, 1) ~= '~'
  return is_held == (op.only == 'running')
end

-- A budget of a step: what it may look at, do and read.
local function has_left(budget)
  return budget.looks > 0 and budget.acts > 0 and budget.bytes > 0
end

-- Show entries behind op.cursor to `visit` while the budget lasts; true at their end. Pages begin small, and then have about as many as
-- the budget bears: how large messages are shows only when they are read.
local function walk_entries(op, key, last, budget, visit)
  local page, seen, read = 1, 0, 0
  while has_left(budget) do
    if op.cursor == LAST_ID then return true end
    local rows = redis.call('XRANGE', key, op.cursor == '-' and '-' or '(' .. op.cursor, last, 'COUNT', page)
    for _, row in ipairs(rows) do
      if not has_left(budget) then return false end
      op.cursor = row[1]
      local size = bytes_of(row[2])
      budget.looks, budget.bytes = budget.looks - 1, budget.bytes - size
      seen, read = seen + 1, read + size
      visit(row[1], row[2])
    end
    if #rows < page then return true end
    page = math.max(1, math.min(PAGE, 2 * page, math.floor(budget.bytes * seen / math.max(1, read))))
  end
  return false
end

-- Which process of the server this is. A cursor of ZSCAN means nothing to another one, which has its members in another order.
local function server_run()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
end

-- The same of delayed jobs. A page of members is kept until all of it was looked at: its cursor knows no place within it. After a
-- restart of the server the walk begins anew; what was done is gone, or the same as it is to be.
local function walk_due(op, budget, visit)
  local run = server_run()
  if op.run ~= run and op.cursor ~= '-' then op.cursor, op.members = '-', {} end
  op.run = run
  while has_left(budget) do
    if #op.members == 0 and op.cursor == 'end' then return true end
    if #op.members == 0 then
      local found = redis.call('ZSCAN', DUE, op.cursor == '-' and '0' or op.cursor, 'COUNT', 50)
      op.cursor = found[1] == '0' and 'end' or found[1]
      for i = 1, #found[2], 2 do op.members[#op.members + 1] = found[2][i] end
      budget.looks = budget.looks - 5 -- a guess: what it costs, so that pages without members have an end
    else
      local member = table.remove(op.members)
      local packed = redis.call('HGET', MSG, member)
      local record = packed and unpack_record(packed)
      budget.looks, budget.bytes = budget.looks - 1, budget.bytes - (packed and #packed or 0)
      if record then visit(member, record) end
    end
  end
  return false
end

-- The fields of what is at a place now; nil where nothing is.
local function fields_at(where, id)
  if where ~= 'due' then return fields_of(where == 'dead' and DEAD or KEYS[number_of_stream(where)], id) end
  local packed = redis.call('HGET', MSG, id)
  return packed and unpack_record(packed)
end

-- The same of places that were chosen one by one: also of what is gone, without fields. Its cursor is how many were looked at.
local function walk_chosen(op, key, budget, visit)
  local at = tonumber(op.cursor) or 0
  while has_left(budget) do
    local places = redis.call('LRANGE', key, at, at + PAGE - 1)
    for _, place in ipairs(places) do
      if not has_left(budget) then return false end
      at = at + 1
      op.cursor, budget.looks = ms(at), budget.looks - 1
      local where, id = string.match(place, '^(%l+) (.+)$')
      if where and can_be_in(VERBS[op.verb], where) then
        local ok, fields = pcall(fields_at, where, id)
        if ok and fields then budget.bytes = budget.bytes - bytes_of(fields) end
        visit(where, id, ok and fields or nil)
      end
    end
    if #places < PAGE then
      if at < number_in(op, 'total', 0) then error('the list of what was chosen is gone') end
      return true
    end
  end
  return false
end

-- Show what is meant to `visit`, from where the operation stands, while the budget lasts; true when all was looked at.
-- Moves op.at, op.cursor and op.members on.
local function walk(op, budget, visit)
  op.at, op.cursor = number_in(op, 'at', 1), op.cursor or '-'
  local ok, members = pcall(cmsgpack.unpack, op.page or '')
  op.members = ok and type(members) == 'table' and members or {}
  while op.at <= #op.sources do
    local where = op.sources[op.at]
    local function show(id, fields)
      local named = by_name(fields)
      local is_in_stream = where ~= 'dead' and where ~= 'due'
      if is_meant(op, where, id, named) and (not is_in_stream or is_in_state(op, where, id)) then visit(where, id, fields, named) end
    end
    local is_end
    if where == 'chosen' then
      is_end = walk_chosen(op, op.chosen_key, budget, function(at, id, fields) visit(at, id, fields, fields and by_name(fields)) end)
    elseif where == 'due' then
      is_end = walk_due(op, budget, show)
    elseif where == 'dead' then
      is_end = walk_entries(op, DEAD, op['until:dead'], budget, show)
    else
      is_end = walk_entries(op, KEYS[number_of_stream(where)], '+', budget, show)
    end
    if not is_end then return false end
    op.at, op.cursor, op.members = op.at + 1, '-', {}
  end
  return true
end
