#!lua
-- Send a job that people made of a dead letter in the place of that, which goes to the trash: one step, so that no death of who asks,
-- and nobody who replays the letter meanwhile, lets both run.
-- ARGV: letter, by, reason, number of the stream, then fields and values of the job in turn.
-- Reply: 'sent' and its entry; 'copy' and a job's id where that one lives with its key; 'gone' and '' where there is no such letter.
-- With the last two nothing was done. Order: XADD, the key's mark, the copy in the trash, the letter.

local letter, by, reason, s = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local trouble = trouble_with_place(AUDIT, 'stream') or trouble_with_place(DEAD, 'stream') or trouble_with_place(TRASH, 'stream')
if trouble then return redis.error_reply(trouble) end

local fields = fields_of(DEAD, letter)
if not fields then return {'gone', ''} end
local message = {unpack(ARGV, 5)}
local key = field(message, 'key')
local is_copy, id = false, nil
if key then is_copy, id = is_spare(s, '', message, key, '', now_ms()) end
if is_copy then return {'copy', id} end

local entry = redis.call('XADD', KEYS[s], '*', unpack(message))
local place = STREAMS[s] .. ' ' .. entry
if key then pcall(own_key, key, place) end -- it is stored, whatever becomes of its mark
local job_id = field(fields, 'id') or '?'
local to = trash_letter(fields, by)
redis.call('XDEL', DEAD, letter)
local told = {
  string.format('sent: %s as %s-%s, made of dead/%s', field(message, 'type'), STREAMS[s], entry, letter),
  string.format('trash %s (dead/%s): moved %s', job_id, letter, to),
}
for at, line in ipairs(told) do told[at] = string.gsub(line, '%c', '?') end
pcall(write_audit, by, reason, told)
return {'sent', entry}
