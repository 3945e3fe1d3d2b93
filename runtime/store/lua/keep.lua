#!lua
-- Keep what finished jobs have answered, for those who wait for it. KEYS: what their keys begin with, without the colon. ARGV: what goes
-- before each answer, then per job: its id, the answer as JSON, for how many ms. Reply: 1. With memory full the server refuses it as a
-- whole.
-- Sent as text, without what other scripts share: a server that has forgotten it would answer so, and go on to the acks behind it.
for i = 2, #ARGV, 3 do redis.call('SET', KEYS[1] .. ':' .. ARGV[i], ARGV[1] .. ARGV[i + 1] .. '}', 'PX', ARGV[i + 2]) end
return 1
