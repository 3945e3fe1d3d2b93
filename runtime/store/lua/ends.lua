#!lua flags=no-writes
-- Where the streams and the dead letters end. An entry with an id far ahead closes its stream: all later ids lie ahead of it.
-- ARGV: none. Reply: now in ms, then for each the ms by which its last id lies ahead (0 where it does not), and 1 where `reopen` has
-- work left.

local now = now_ms()
local reply = {now}
for s = 1, #KEYS do
  if s <= #STREAMS or KEYS[s] == DEAD then
    reply[#reply + 1] = ms(math.max(0, last_ms_of(KEYS[s]) - now))
    reply[#reply + 1] = redis.call('EXISTS', closed_name(s))
  end
end
return reply
