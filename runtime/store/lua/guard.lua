-- The guard, shared by beat and reclaim: after a gap in all beats (an outage, a clock step) no lease is taken away for the time of
-- one. Only a beat writes `~last`; beat and reclaim, whichever sees the gap, write `~since`. Returns the ms since the guard began.

local function guard(now, lease_ms)
  local last = tonumber(redis.call('ZSCORE', WORKERS, '~last') or '0')
  local gap = now - last
  if gap > lease_ms / 2 or gap < 0 then redis.call('ZADD', WORKERS, ms(now), '~since') end
  return now - tonumber(redis.call('ZSCORE', WORKERS, '~since') or '0')
end
