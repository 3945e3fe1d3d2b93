#!lua flags=allow-oom
-- Keyed jobs claim their key, or are dropped as copies of a live job with the same key.
-- ARGV: consumer, then per job: stream, entry, count, key. Reply: per job 1 mine, 2 a copy and dropped, 0 refused, or an error text.
-- A mark names the place of its owner, so a redelivery of the owner is never taken for a copy. The copy is tested and
-- dropped in this one step.

local consumer = ARGV[1]

return each(2, 4, function(i)
  local s = tonumber(ARGV[i])
  local id, count, key = ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  if not holds(s, id, consumer, count) then return 0 end
  local place = STREAMS[s] .. ' ' .. id
  if key_is_free(key, place) then
    own_key(key, place)
    return 1
  end
  remove(s, id, count)
  return 2
end)
