#!lua flags=allow-oom
-- Say anew what a worker is, between two beats; nothing is said of one that has left, or was forgotten: its row would stay.
-- ARGV: consumer, row (begins with the lease in ms and a space). Reply: 1 when it is written, else 0.

if not redis.call('ZSCORE', WORKERS, ARGV[1]) then return 0 end
redis.call('HSET', ROWS, ARGV[1], ARGV[2])
return 1
