#!lua flags=allow-oom
-- Held entries to a lot, with the delivery count they had before they were handed out, so that giving back costs nothing. One that was
-- cancelled meanwhile is buried instead.
-- ARGV: consumer, then per entry: stream, entry, count, lot. Reply: per entry 1 moved, 0 refused, or an error text.
-- RETRYCOUNT with JUSTID sets the count and leaves it; JUSTID alone would make the next claim count one too many.

local consumer = ARGV[1]

look_up(2, 4, consumer)
return each(2, 4, function(i)
  local s, id, count = tonumber(ARGV[i]), ARGV[i + 1], tonumber(ARGV[i + 2])
  if not holds(s, id, consumer, count) then return 0 end
  park(s, id, ARGV[i + 3], count - 1)
  if count > 1 then acquit(s, id, consumer) end
  return 1
end)
