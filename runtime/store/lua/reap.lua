#!lua flags=allow-oom
-- Say that a worker is dead for certain: its process was seen to end. The next sweep then takes back what it holds, whatever is left
-- of its leases, and forgets it. Nothing is moved here, so that one place alone judges who is suspect.
-- ARGV: consumer. Reply: 1, or 0 where nobody knows it any more (it has left in peace, or was forgotten), or it was said before.

local consumer = ARGV[1]
if not redis.call('ZSCORE', WORKERS, consumer) or was_reaped(consumer) then return 0 end
local held, jobs, bytes_left = 0, {}, 131072 -- as reclaim: payloads may be long
for s = 1, #STREAMS do
  local summary = redis.pcall('XPENDING', KEYS[s], GROUP)
  for _, row in ipairs(not summary.err and summary[4] or {}) do
    if row[1] == consumer then
      held = held + row[2]
      for _, entry in ipairs(redis.call('XPENDING', KEYS[s], GROUP, '-', '+', TOLD_JOBS, consumer)) do
        local fields = #jobs < TOLD_JOBS and bytes_left > 0 and fields_of(KEYS[s], entry[1]) or {}
        bytes_left = bytes_left - bytes_of(fields)
        if fields[1] then jobs[#jobs + 1] = named(s, entry[1], by_name(fields)) end
      end
    end
  end
end
redis.call('ZADD', WORKERS, 0, consumer)
note_death(consumer, held, jobs)
return 1
