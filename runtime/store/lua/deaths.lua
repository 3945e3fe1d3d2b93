-- The record of workers that died, shared by reclaim, reap and forget: it is written in the step in which what one held is taken back,
-- in which its end is told, or in which it is forgotten. Of one worker there may be several parts, which readers add up.

local TOLD_JOBS = 5 -- of a part, by type and id; a guess: a line of a log

-- Whether somebody who saw the process end has said so. A beat that was under way by then, and comes later, takes that back: then
-- its lease must end first, as without.
local function was_reaped(consumer)
  return redis.call('ZSCORE', WORKERS, consumer) == '0'
end

local function named(s, id, known)
  return string.sub(known.type or '', 1, 64) .. ' ' .. string.sub(known.id or STREAMS[s] .. '-' .. id, 1, 128)
end

local function note_death(consumer, held, jobs)
  local told = {}
  for i = 1, math.min(#jobs, TOLD_JOBS) do
    told[2 * i - 1], told[2 * i] = 'job', jobs[i]
  end
  local deaths = PREFIX .. 'deaths'
  redis.pcall('XADD', deaths, 'MAXLEN', '~', MAX_DEATHS, '*', 'by', string.sub(consumer, 1, 128), 'held', ms(held), unpack(told))
  redis.pcall('PEXPIRE', deaths, EVENTS_LIFE_MS)
end
