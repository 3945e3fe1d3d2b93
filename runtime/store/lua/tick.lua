#!lua
-- Fire ticks of schedules, each once over any number of workers.
-- ARGV: '1' to forget rows that nobody has confirmed for long, else '0'; the caller's idea of now; then per schedule: name, hash of
-- what says when, hash of all, revision, the last time that was decided ('' unknown), the newest time that is decided now, how many
-- late ticks are left out, overlap (allow, skip; paused fires nothing), stream, how many words the fields that all its messages share
-- have, these fields and values in turn, how many ticks, and per tick: its time, until when its job may start ('' for any time).
-- Reply: now; then per schedule a word or an error text, the last time that is decided now, fired, skipped. The words: kept (nothing to
-- do), fired, moved (another worker was first), early (worked out for another time than now), new (other times rule from now on),
-- ahead (the clock has gone back), other (another definition rules).
-- Row: the last time, both hashes, when a worker last confirmed it, hashes that ruled before, then the last ticks: `<ms>f` fired, `<ms>s`
-- skipped, `<ms>m<n>` n were left out, `<ms>p` paused. It is written last; a repeated call finds another last time, and does nothing.

local ALIVE_MS = 15000 -- a guess: a quarter of the next, so that a few may be late
local STALE_MS = 60000 -- a guess: a rolling restart has replaced the worker that it stopped
local FORGET_MS = 7 * 24 * 3600000 -- a guess: whoever comes back later begins anew
local AHEAD_MS = 30000 -- a usual lease: a clock that is set by less has been waited for
local OFF_MS = 10000 -- a guess: who is so far behind (its machine slept, or the clock was set) takes for on time what is late
local FORMER, TICKS = 8, 20 -- guesses: releases of a day; what fits a line

local now = now_ms()

local function parse(text)
  local last, times, whole, alive, former, log = string.match(text or '', '^(%d+) (%x+) (%x+) (%d+) (%S+) ?(.*)$')
  if not last or #last > 15 or #alive > 15 then return nil end
  local row = {last = tonumber(last), times = times, whole = whole, alive = tonumber(alive), former = {}, log = {}}
  for hash in string.gmatch(former, '%x+') do table.insert(row.former, hash) end
  for tick in string.gmatch(log, '%S+') do table.insert(row.log, tick) end
  return row
end

local function packed(row)
  while #row.former > FORMER do table.remove(row.former, 1) end
  while #row.log > TICKS do table.remove(row.log, 1) end
  local former = #row.former > 0 and table.concat(row.former, ',') or '-'
  return table.concat({ms(row.last), row.times, row.whole, ms(row.alive), former, unpack(row.log)}, ' ')
end

-- Who confirms `whole` rules, unless it ruled before and what followed it is alive. Returns nil, or the word that ends the call.
local function rule(row, times, whole)
  if row.whole == whole then return nil end
  local rest = {}
  for _, hash in ipairs(row.former) do
    if hash ~= whole then rest[#rest + 1] = hash end
  end
  if #rest < #row.former and now - row.alive < STALE_MS then return 'other' end
  rest[#rest + 1] = row.whole
  local is_new = row.times ~= times
  if is_new then row.last = math.max(row.last, row.alive) end -- its times of before are no ticks that were missed
  row.former, row.times, row.whole, row.alive = rest, times, whole, now
  return is_new and 'new' or nil
end

local function fire(row, ask)
  local key, fired, skipped = 'cron:' .. ask.name, 0, 0
  if ask.missed > 0 then table.insert(row.log, ms(now) .. 'm' .. ask.missed) end
  for i = ask.at, ask.at + 2 * ask.ticks - 1, 2 do
    local tick, exp = ARGV[i], ARGV[i + 1]
    if ask.overlap == 'skip' and not key_is_free(key, '') then
      skipped = skipped + 1
      table.insert(row.log, tick .. 's')
    else
      local fields = {'id', key .. ':' .. tick, 'first_at', tick}
      if exp ~= '' then fields[#fields + 1], fields[#fields + 2] = 'exp', exp end
      if ask.overlap == 'skip' then fields[#fields + 1], fields[#fields + 2] = 'key', key end
      for word = ask.fields, ask.fields + ask.words - 1 do fields[#fields + 1] = ARGV[word] end
      local entry = redis.call('XADD', KEYS[ask.stream], '*', unpack(fields))
      if ask.overlap == 'skip' then own_key(key, STREAMS[ask.stream] .. ' ' .. entry) end
      fired = fired + 1
      table.insert(row.log, tick .. 'f')
    end
  end
  if ask.overlap == 'paused' and not string.find(row.log[#row.log] or '', 'p', 1, true) then table.insert(row.log, ms(now) .. 'p') end
  row.last, row.alive = ask.last, now
  return 'fired', fired, skipped
end

local function decide(ask, row)
  local is_ahead = row.last > now + AHEAD_MS
  if is_ahead then row.last = now end
  if row.alive > now + AHEAD_MS then row.alive = now end
  local word = rule(row, ask.times, ask.whole)
  if word ~= 'other' and is_ahead then word = 'ahead' end
  if word then return word, 0, 0 end
  if now - row.alive > ALIVE_MS then row.alive = now end
  if ask.ticks == 0 and ask.missed == 0 and ask.last <= row.last then return 'kept', 0, 0 end
  if ask.expected ~= ms(row.last) then return 'moved', 0, 0 end
  if ask.last > now or now - ARGV[2] > OFF_MS then return 'early', 0, 0 end
  return fire(row, ask)
end

local function tick(ask)
  local stored, text = redis.call('HGET', CRON, ask.name), redis.call('HGET', CRON_STATE, ask.name)
  local row = parse(text)
  if ask.revision ~= (string.match(stored or '', '^%d+') or '0') then return 'other', row and row.last or now, 0, 0 end
  local word, fired, skipped = 'new', 0, 0
  if row then
    word, fired, skipped = decide(ask, row)
  else
    row = {last = now, times = ask.times, whole = ask.whole, alive = now, former = {}, log = {}}
  end
  local new = packed(row)
  if new ~= text then redis.call('HSET', CRON_STATE, ask.name, new) end
  return word, row.last, fired, skipped
end

local answers, at = {now}, 3
while at <= #ARGV do
  local ask = {
    name = ARGV[at], times = ARGV[at + 1], whole = ARGV[at + 2], revision = ARGV[at + 3], expected = ARGV[at + 4],
    last = tonumber(ARGV[at + 5]), missed = tonumber(ARGV[at + 6]), overlap = ARGV[at + 7], stream = tonumber(ARGV[at + 8]),
    words = tonumber(ARGV[at + 9]), fields = at + 10,
  }
  ask.ticks = tonumber(ARGV[ask.fields + ask.words])
  ask.at = ask.fields + ask.words + 1
  at = ask.at + 2 * ask.ticks
  local ok, word, last, fired, skipped = pcall(tick, ask)
  for _, part in ipairs(ok and {word, ms(last), fired, skipped} or {text_of(word), '0', 0, 0}) do answers[#answers + 1] = part end
end

if ARGV[1] == '1' then
  local rows = redis.pcall('HGETALL', CRON_STATE)
  for i = 1, rows.err and 0 or #rows, 2 do
    local row = parse(rows[i + 1])
    if row and now - row.alive > FORGET_MS then redis.call('HDEL', CRON_STATE, rows[i]) end
  end
end
return answers
