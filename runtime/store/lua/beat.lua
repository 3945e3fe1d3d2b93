#!lua flags=allow-oom
-- Say that this worker lives, until when, and what it is.
-- ARGV: consumer, lease in ms, row (begins with the lease in ms and a space). Reply: now in ms.

local consumer, lease_ms = ARGV[1], tonumber(ARGV[2])
local now = now_ms()
guard(now, lease_ms)
redis.call('ZADD', WORKERS, ms(now), '~last')
redis.call('ZADD', WORKERS, ms(now + lease_ms), consumer)
redis.call('HSET', ROWS, consumer, ARGV[3])
return now
