#!lua flags=allow-oom
-- Keyed jobs claim their key, or are dropped as copies of a live job with the same key; one that was cancelled meanwhile is buried.
-- ARGV: consumer, then per job: stream, entry, count, key, its time in ms ('' for none). Reply: per job 1 mine; dropped: 'copy <id>' of the
-- job that lives with its key, 'folded <id>' into that, which waits, or 'outrun ' by a newer one; 3 mine and put among the delayed ones,
-- 0 refused, or an error text.
-- A mark names the place of its owner, so a redelivery of the owner is never taken for a copy. The copy is tested and
-- dropped in this one step. What waits for its time goes there at once: what comes behind it, in this very call, is folded into it.

local consumer, now = ARGV[1], now_ms()

local function put_off(s, id, due, fields, key)
  local first = first_time(now, field(fields, 'first_at'), string.match(id, '^%d+'))
  local job_id = field(fields, 'id') or (STREAMS[s] .. '-' .. id)
  local place = delay(s, due, fields, job_id, first, stands_at(s, id))
  pcall(own_key, key, place, due)
end

-- Has its time come, while the newer one that has taken its key waits? Then it runs: where its stream is long and changes never end,
-- none would. Only what was delayed has a time of birth before its first attempt; a copy has none.
local function goes_ahead(s, id, key)
  local place = place_of_owner(key)
  local owner = place and string.find(place, '^due ') and owner_at(place, key)
  local fields = owner and not has_begun(owner) and fields_of(KEYS[s], id)
  return fields and field(fields, 'first_at') and not has_begun(fields)
end

-- Has a newer one taken its key, and ended before this one is met? Run now, it would undo what changed last.
local function is_outrun(s, id, key)
  local over = redis.pcall('GET', over_of(key))
  local fields = type(over) == 'string' and fields_of(KEYS[s], id)
  return fields and tonumber(first_time(now, field(fields, 'first_at'), string.match(id, '^%d+'))) <= (tonumber(over) or 0)
end

return each(2, 5, function(i)
  local s = tonumber(ARGV[i])
  local id, count, key, due = ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3], ARGV[i + 4]
  if not holds(s, id, consumer, count) then return 0 end
  if is_cancelled(s, id) then -- among the delayed ones, or folded into another, its mark would be forgotten
    bury(s, id)
    return 0
  end
  local place = STREAMS[s] .. ' ' .. id
  if place_of_owner(key) == place then
    own_key(key, place)
    return 1
  end
  local fields = due ~= '' and fields_of(KEYS[s], id)
  if not fields then due = '' end -- deleted by hand: whatever it does next finds out
  local is_copy, of, is_folded = is_spare(s, due, fields, key, place, now)
  if due == '' then
    if is_copy and goes_ahead(s, id, key) then return 1 end
    is_copy = is_copy or is_outrun(s, id, key)
  end
  if is_copy then
    remove(s, id, count)
    return (is_folded and 'folded ' or of and 'copy ' or 'outrun ') .. string.sub(of or '', 1, 128)
  end
  if puts_off(due, fields) and (tonumber(due) > now or not key_is_free(key, place)) then
    put_off(s, id, due, fields, key)
    remove(s, id, count)
    return 3
  end
  own_key(key, place)
  return 1
end)
