#!lua flags=allow-oom
-- Dead letters to the trash, or back out of it. ARGV: 'trash' or 'restore', by, reason, then up to 100 places.
-- Reply: per letter 'moved <its new place>' or 'gone', or an error text that concerns it alone; of the first ones only where all together
-- would be too many bytes: the caller asks again for the others.
-- Order: the copy, then the letter. Repeated after a lost reply it does no more: what was moved is gone from there.

local MOST, BYTES = 100, 131072 -- a guess, and as a step of an operation has it: about a millisecond
local verb, by, reason = ARGV[1], ARGV[2], ARGV[3]
local from = verb == 'trash' and DEAD or TRASH

local function trouble_with_all()
  if verb ~= 'trash' and verb ~= 'restore' then return 'BADORDER no verb ' .. tostring(verb) end
  if #ARGV > 3 + MOST then return 'BADORDER must be at most ' .. MOST .. ' letters' end
  return trouble_with_place(AUDIT, 'stream') or trouble_with_place(DEAD, 'stream') or trouble_with_place(TRASH, 'stream')
end

local trouble = trouble_with_all()
if trouble then return redis.error_reply(trouble) end

local read = 0
local function move(place)
  local fields = fields_of(from, place)
  if not fields then return 'gone' end
  read = read + bytes_of(fields)
  local id = field(fields, 'id') or '?'
  local to = verb == 'trash' and trash_letter(fields, by) or restore_letter(fields)
  redis.call('XDEL', from, place)
  return 'moved ' .. to, id
end

local answers, told = {}, {}
for i = 4, #ARGV do
  if read >= BYTES then break end
  local ok, answer, id = pcall(move, ARGV[i])
  answers[#answers + 1] = ok and answer or text_of(answer)
  if ok and id then told[#told + 1] = string.gsub(string.format('%s %s (dead/%s): %s', verb, id, ARGV[i], answer), '%c', '?') end
end
if #told > 0 then pcall(write_audit, by, reason, told) end
return answers
