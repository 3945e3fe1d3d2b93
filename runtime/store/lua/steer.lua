#!lua flags=allow-oom
-- Cancel jobs, let them run now, or give them another priority, each wherever it is.
-- ARGV: verb, by, reason, the priority ('' with other verbs), then per job where it is: the number of a stream and an entry, or 0 and a
-- member of those that are delayed.
-- Reply: per job an answer, as steering.lua has them, or an error text that concerns this job alone.
-- Repeated after a lost reply it does no more: what was moved is gone from there, and what was asked is asked.

local MAX_JOBS = 500
local verb, by, reason, argument = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local NEEDS = {cancel = false, now = false, priority = true}

local function trouble_with_all()
  if NEEDS[verb] == nil then return 'BADORDER no verb ' .. tostring(verb) end
  local is_name = argument == ''
  for s = 1, #STREAMS do is_name = is_name or STREAMS[s] == argument end
  if not is_name or (argument ~= '') ~= NEEDS[verb] then return 'BADORDER ' .. verb .. ': must name a priority where it sets one' end
  if #ARGV > 4 + 2 * MAX_JOBS or #ARGV % 2 == 1 then return 'BADORDER must be at most ' .. MAX_JOBS .. ' jobs of two words' end
  return trouble_with_place(AUDIT, 'stream')
end

local trouble = trouble_with_all()
if trouble then return redis.error_reply(trouble) end

local who = reason == '' and by or by .. ': ' .. reason
local what = argument == '' and verb or verb .. ' ' .. argument
local answers, told = {}, {}
for i = 5, #ARGV, 2 do
  local s, id = tonumber(ARGV[i]), ARGV[i + 1]
  local ok, answer, job_id, place
  if s == 0 then
    ok, answer, job_id = pcall(steer_due, verb, who, argument, id)
    place = 'due/' .. id
  else
    ok, answer, job_id = pcall(steer_entry, verb, who, argument, s, id)
    place = stands_at(s, id)
  end
  answers[#answers + 1] = ok and answer or text_of(answer)
  if ok and job_id then told[#told + 1] = string.gsub(string.format('%s %s (%s): %s', what, job_id, place, answer), '%c', '?') end
end
if #told > 0 then pcall(write_audit, by, reason, told) end
return answers
