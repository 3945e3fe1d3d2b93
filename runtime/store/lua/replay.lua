#!lua
-- A dead letter back to its stream, with its id and a fresh count of attempts.
-- ARGV: letter. Reply: the new entry's id; 'gone' when there is no such letter; 'unreadable' when it names no stream or holds no
-- message; 'left-out' when its payload was too large to be kept; 'owned' when another live job owns its key.
-- Order: XADD, the key's mark, then the letter.

local fields = fields_of(DEAD, ARGV[1])
if not fields then return 'gone' end
local trouble, entry = replay_letter(fields, by_name(fields), now_ms())
if trouble then return trouble end
redis.call('XDEL', DEAD, ARGV[1])
return entry
