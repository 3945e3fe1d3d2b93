#!lua flags=allow-oom
-- Finished entries leave: the way out when memory is full (unfenced) and after a server restart (fenced).
-- ARGV: consumer, or '' for no fence; then per entry: stream, entry, count. Reply: per entry 1 gone, 0 refused, or an error text.

local consumer = ARGV[1]

return each(2, 3, function(i)
  local stream, id = KEYS[tonumber(ARGV[i])], ARGV[i + 1]
  if consumer ~= '' and not holds(stream, id, consumer, tonumber(ARGV[i + 2])) then return 0 end
  remove(stream, id)
  return 1
end)
