#!lua flags=allow-oom
-- Finished entries leave: the way out of keyed jobs, when memory is full and of former suspects (unfenced), and after a server
-- restart (fenced).
-- ARGV: consumer, or '' for no fence; then per entry: stream, entry, count, key ('' where none).
-- Reply: per entry 1 gone, 0 refused or gone before, or an error text.

local consumer = ARGV[1]

if consumer ~= '' then look_up(2, 4, consumer) end
return each(2, 4, function(i)
  local s, id, count = tonumber(ARGV[i]), ARGV[i + 1], tonumber(ARGV[i + 2])
  if consumer ~= '' and not holds(s, id, consumer, count) then return 0 end
  local is_there = known[s][id] ~= false and #redis.pcall('XPENDING', KEYS[s], GROUP, id, id, 1) > 0
  remove(s, id, count)
  free_key(ARGV[i + 3], STREAMS[s] .. ' ' .. id)
  if not is_there then return 0 end
  return 1
end)
