-- Remembers responses that a provider keeps, and the items of their output, for the owner of an API key.
--
-- KEYS[1]  {responses:<tenantId>:<owner>}, a hash: ID -> what is known of the response
-- KEYS[2]  {responses:<tenantId>:<owner>}:order, a sorted set: ID -> when it was remembered (Unix ms)
-- ARGV[1]  milliseconds until the owner's IDs expire, unless they expire later
-- ARGV[2]  the most IDs that are kept
-- ARGV[3…] pairs of an ID and what is known of it: at most as many as are kept
--
-- Returns the number of IDs that were forgotten because there were too many, the oldest first.

local time = call('TIME')
local now = string.format('%.0f', math.floor(time[1] * 1000 + time[2] / 1000))
for first = 3, #ARGV, 1000 do -- Lua's stack bounds the arguments of a call
	local last, order = math.min(first + 999, #ARGV), {}
	for i = first, last, 2 do
		order[#order + 1] = now
		order[#order + 1] = ARGV[i]
	end
	call('HSET', KEYS[1], unpack(ARGV, first, last))
	call('ZADD', KEYS[2], unpack(order))
end
local surplus = call('ZCARD', KEYS[2]) - ARGV[2]
if surplus > 0 then
	local oldest = call('ZRANGE', KEYS[2], '0', string.format('%.0f', surplus - 1))
	for first = 1, #oldest, 1000 do
		local last = math.min(first + 999, #oldest)
		call('HDEL', KEYS[1], unpack(oldest, first, last))
		call('ZREM', KEYS[2], unpack(oldest, first, last))
	end
end
for i = 1, 2 do
	if call('PEXPIRE', KEYS[i], ARGV[1], 'GT') == 0 and call('PEXPIRETIME', KEYS[i]) == -1 then
		call('PEXPIRE', KEYS[i], ARGV[1])
	end
end
return math.max(surplus, 0)
