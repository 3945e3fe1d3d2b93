#!lua flags=allow-oom
-- An isolation is over, and who ran it lives: others may run beside what is left of it, and a death is no evidence any more.
-- ARGV: consumer, then per entry that ran alone: stream, entry. Reply: 1.
-- What is still ours has outlived its isolation: no earlier death counts either, since a job that kills would have done it again.
-- Nothing here may fail: until this is confirmed, its worker starts nothing else.

local consumer = ARGV[1]

redis.pcall('HDEL', ISOLATIONS, consumer)
for i = 2, #ARGV, 2 do
  local s, id = tonumber(ARGV[i]), ARGV[i + 1]
  local row = redis.pcall('XPENDING', KEYS[s], GROUP, id, id, 1)[1]
  if row and row[2] == consumer then
    redis.pcall('HDEL', STRIKES, stands_at(s, id))
  else
    acquit(s, id, consumer)
  end
end
return 1
