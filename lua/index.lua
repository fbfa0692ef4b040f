-- Changes the index of a user's API keys, and drops at most 10 of them that have expired. The index is a hint: it may
-- name keys that do not exist.
--
-- KEYS[1]  {userKeys:<tenantId>:<userId>}:byTime: the keys by when they were created, in Unix ms
-- KEYS[2]  {userKeys:<tenantId>:<userId>}:byExpiry: those of them that expire by when they do, in Unix ms
-- KEYS[3]  userKeys:<tenantId>:<userId>: the set of earlier versions; omitted if it is in another slot
-- ARGV[1…] groups of three: an API key; when it was created, '' if it is not to be added; and when it expires, '' if it
--          never does, 'gone' if it is to be removed from all three
--
-- If all keys expire, both sets expire with the last of them. Returns how many keys were added that byTime did not have.

local byTime, byExpiry, added = KEYS[1], KEYS[2], 0

for i = 1, #ARGV, 3 do
	local key, created, expires = ARGV[i], ARGV[i + 1], ARGV[i + 2]
	if expires == 'gone' then
		call('ZREM', byTime, key)
		if KEYS[3] then
			call('SREM', KEYS[3], key)
		end
	elseif created ~= '' then
		added = added + call('ZADD', byTime, created, key)
	end
	if tonumber(expires) then
		call('ZADD', byExpiry, expires, key)
	else
		call('ZREM', byExpiry, key)
	end
end

local time = call('TIME')
local now = string.format('%.0f', math.floor(time[1] * 1000 + time[2] / 1000))
local expired = call('ZRANGE', byExpiry, '-inf', '(' .. now, 'BYSCORE', 'LIMIT', 0, 10)
if expired[1] then
	call('ZREM', byTime, unpack(expired))
	call('ZREM', byExpiry, unpack(expired))
end

local last = call('ZCARD', byTime) == call('ZCARD', byExpiry) and call('ZRANGE', byExpiry, -1, -1, 'WITHSCORES')[2]
for _, set in ipairs({byTime, byExpiry}) do
	if last then
		call('PEXPIREAT', set, last)
	else
		call('PERSIST', set)
	end
end
return added
