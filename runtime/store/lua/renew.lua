#!lua flags=allow-oom
-- Renew leases that are still ours; say which are not.
-- ARGV: consumer, then per lease: stream, entry, count. Reply: the positions (from 0) of those refused.
-- An entry that has no consumer is no refusal either: the group was made again, and will deliver it to us or to others.
-- An error is no refusal: without a group the call fails, and the leases stay in mind; a stream whose key is of another type is passed
-- over, or its leases would cost the worker all the others.
-- Whose lease is lost, lives: its name leaves the strikes.
-- XCLAIM only after the fence, and with JUSTID: bare, it would steal the job back from its new owner and raise its count.

local consumer = ARGV[1]
local refused, mine = {}, lists()

local function look(i)
  local s, id = tonumber(ARGV[i]), ARGV[i + 1]
  if holds(s, id, consumer, tonumber(ARGV[i + 2])) then
    table.insert(mine[s], id)
  elseif #redis.call('XPENDING', KEYS[s], GROUP, id, id, 1) > 0 or not fields_of(KEYS[s], id) then
    refused[#refused + 1] = (i - 2) / 3
    acquit(s, id, consumer)
  end
end

look_up(2, 3, consumer)
for i = 2, #ARGV, 3 do
  local ok, failure = pcall(look, i)
  if not ok and not string.find(text_of(failure), 'WRONGTYPE', 1, true) then error(failure) end
end
for s = 1, #STREAMS do
  if #mine[s] > 0 then
    local call = {'XCLAIM', KEYS[s], GROUP, consumer, 0}
    for _, id in ipairs(mine[s]) do call[#call + 1] = id end
    call[#call + 1] = 'JUSTID'
    redis.call(unpack(call))
  end
end
return refused
