#!lua flags=allow-oom
-- Remove a consumer, only where its pending list is empty: DELCONSUMER drops what is pending, and nothing would find it again.
-- ARGV: consumer, and if its row was seen standing still, where: one that has moved since is alive.
-- Reply: 1 when it is gone everywhere, else 0.

local consumer = ARGV[1]
if ARGV[2] and stands_until(consumer) ~= tonumber(ARGV[2]) then return 0 end
local gone = 1
for s = 1, #STREAMS do
  local held = redis.pcall('XPENDING', KEYS[s], GROUP, '-', '+', 1, consumer)
  if held.err then
    -- no stream or no group: nothing is pending there
  elseif #held == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[s], GROUP, consumer)
  else
    gone = 0
  end
end
if gone == 1 then
  if redis.call('ZSCORE', WORKERS, consumer) and ARGV[2] and not was_reaped(consumer) then note_death(consumer, 0, {}) end
  redis.call('ZREM', WORKERS, consumer)
  redis.call('HDEL', ROWS, consumer)
  redis.pcall('HDEL', ISOLATIONS, consumer)
  redis.pcall('HDEL', CONTROL, 'worker:' .. consumer)
end
return gone
