-- The guard of the store, shared by beat and reclaim: after a gap in all beats (an outage, a clock step) nobody is robbed for
-- one lease. Only a beat writes `~last`; whoever sees the gap writes `~since`. Gives the ms since the guard began.

local function guard(now, lease_ms)
  local last = tonumber(redis.call('ZSCORE', WORKERS, '~last') or '0')
  local gap = now - last
  if gap > lease_ms / 2 or gap < 0 then redis.call('ZADD', WORKERS, ms(now), '~since') end
  return now - tonumber(redis.call('ZSCORE', WORKERS, '~since') or '0')
end
