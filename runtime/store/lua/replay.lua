#!lua
-- A dead letter back to its stream, with its id and a fresh count of attempts.
-- ARGV: letter. Reply: the new entry's id; 'gone' when there is no such letter; 'unreadable' when it names no stream or holds no
-- message; 'left-out' when its payload was too large to be kept; 'owned' when another live job owns its key.

local fields = fields_of(DEAD, ARGV[1])
if not fields then return 'gone' end
return replay_letter(ARGV[1], fields, now_ms())
