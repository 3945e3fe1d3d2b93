#!lua flags=allow-oom
-- Finished entries leave: the way out when memory is full and of former suspects (unfenced), and after a server
-- restart (fenced).
-- ARGV: consumer, or '' for no fence; then per entry: stream, entry, count. Reply: per entry 1 gone, 0 refused, or an error text.

local consumer = ARGV[1]

return each(2, 3, function(i)
  local s, id, count = tonumber(ARGV[i]), ARGV[i + 1], tonumber(ARGV[i + 2])
  if consumer ~= '' and not holds(KEYS[s], id, consumer, count) then return 0 end
  remove(s, id, count)
  return 1
end)
