#!lua flags=allow-oom
-- What an operation would mean, a bounded part of it: nothing is written. It reads as a step does, with the same words.
-- ARGV: at, cursor and page as the last answer had them ('1', '-', '' at first), then the fields of the operation and their values.
-- Reply: at, cursor and page for the next call, 1 when all was looked at, how many were looked at, the places that are meant
-- ('dead 12-0', 'high 12-0', 'due member').

local LOOKS, BYTES = 100, 131072 -- as a step

local op, places = {}, {}
for i = 4, #ARGV, 2 do op[ARGV[i]] = ARGV[i + 1] end
op.at, op.cursor, op.page = ARGV[1], ARGV[2], ARGV[3]
local trouble = trouble_with_operation(op)
if not trouble and op.chosen then trouble = 'what was chosen is counted' end
if trouble then return redis.error_reply('BADORDER ' .. trouble) end
op.created = op.created or ms(now_ms())
op['until:dead'] = op['until:dead'] or '+'
op.run = server_run() -- the caller's cursor is of this process: a count that a restart spoils is asked for again
local budget = {looks = LOOKS, acts = LOOKS, bytes = BYTES}
local is_end = walk(op, budget, function(where, id) places[#places + 1] = where .. ' ' .. id end)
local page = #op.members > 0 and cmsgpack.pack(op.members) or ''
return {tostring(op.at), op.cursor, page, is_end and 1 or 0, LOOKS - budget.looks, places}
