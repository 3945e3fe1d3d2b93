#!lua flags=no-writes
-- Where the four streams end. An entry with an id far ahead closes its stream: all later ids lie ahead of it.
-- ARGV: none. Reply: now in ms, then per stream the ms by which its last id lies ahead (0 where it does not), and 1 where `reopen` has work left.

local now = now_ms()
local reply = {now}
for s = 1, 4 do
  local info = redis.pcall('XINFO', 'STREAM', KEYS[s])
  local ahead = 0
  for i = 1, info.err and 0 or #info, 2 do
    if info[i] == 'last-generated-id' then ahead = math.max(0, tonumber(string.match(info[i + 1], '^%d+')) - now) end
  end
  reply[#reply + 1] = ms(ahead)
  reply[#reply + 1] = redis.call('EXISTS', closed_name(s))
end
return reply
