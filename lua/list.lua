-- Adds entries to a list that keeps the newest.
--
-- KEYS[1]  the list, a sorted set
-- ARGV[1]  the most entries that it keeps
-- ARGV[2]  an entry that the others replace, or ''
-- ARGV[3…] pairs of a time in Unix ms and an entry; one that the list has already stays as it is
--
-- Returns 1.

if ARGV[2] ~= '' then
	call('ZREM', KEYS[1], ARGV[2])
end
call('ZADD', KEYS[1], unpack(ARGV, 3))
local surplus = call('ZCARD', KEYS[1]) - ARGV[1]
if surplus > 0 then
	call('ZREM', KEYS[1], unpack(call('ZRANGE', KEYS[1], '0', string.format('%.0f', surplus - 1))))
end
return 1
