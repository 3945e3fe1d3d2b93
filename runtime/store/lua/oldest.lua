#!lua flags=no-writes
-- Where the fetching of each stream stands: an entry may have 256 KB, so what is read of it stays here, and its id alone is answered.
-- ARGV: none. Reply: for each stream the id of the entry that was delivered last, and the id of the first that was not; each is empty
-- where there is none, as in a stream without a group or a key of another type.

local reply = {}
for s = 1, #STREAMS do
  local groups, last = redis.pcall('XINFO', 'GROUPS', KEYS[s]), ''
  for g = 1, groups.err and 0 or #groups do
    local group = by_name(groups[g])
    if group.name == GROUP then last = group['last-delivered-id'] end
  end
  local rows = redis.pcall('XRANGE', KEYS[s], last == '' and '-' or '(' .. last, '+', 'COUNT', 1)
  reply[#reply + 1] = last
  reply[#reply + 1] = rows[1] and rows[1][1] or ''
end
return reply
