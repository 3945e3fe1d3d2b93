-- The trash: a stream of dead letters that people moved there, for the scripts that move one letter or many.

local TRASH = PREFIX .. 'trash'
local TRASH_LIFE_MS = 604800000 -- a week, as docs/control.md says
local TRIM = 1000 -- of those that are over their time, a letter; a guess: more than anybody moves at once

-- Copy a letter to the trash, with who moved it. The caller deletes the letter: that comes last.
local function trash_letter(fields, by)
  fields[#fields + 1], fields[#fields + 2] = 'dead_trashed_by', by
  local place = redis.call('XADD', TRASH, '*', unpack(fields))
  redis.call('XTRIM', TRASH, 'MINID', '~', ms(now_ms() - TRASH_LIFE_MS), 'LIMIT', TRIM)
  redis.call('PEXPIRE', TRASH, TRASH_LIFE_MS)
  return place
end

-- Copy a letter back out of the trash, as it was.
local function restore_letter(fields)
  local letter = {}
  for i = 1, #fields, 2 do
    if fields[i] ~= 'dead_trashed_by' then letter[#letter + 1], letter[#letter + 2] = fields[i], fields[i + 1] end
  end
  return redis.call('XADD', DEAD, '*', unpack(letter))
end
