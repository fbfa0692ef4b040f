-- Functions for scripts that look at an API key and its balance.
--
-- KEYS[1] apiKey:<apiKey>. If the key shares the balance of another, it has no field tokensLeft. Its fields sharesWith
--         and sharesFirst say with which: the name that this has now, and the name that it had first.
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted

local sharer -- nil, or what sharer.lua knows of the key that the script was called with

-- isOwn reports whether key, whose first fields are tenantId and generation, is the tenant's.
local function isOwn(key)
	return key[1] == ARGV[1] and (key[2] or '') == ARGV[2]
end

-- readBalance returns the field tokensLeft as a number. If the key shares another's balance, it ends the script with the
-- error 'SHARED <sharesWith> <sharesFirst>', after which the store runs it on that key.
local function readBalance(left)
	local balance = tonumber(left)
	if left ~= '0' and not string.find(left or '', '^[1-9]%d*$') or balance > maxAmount then
		local with = not left and redis.call('HMGET', KEYS[1], 'sharesWith', 'sharesFirst') or {}
		if with[1] and with[2] then
			error({err = 'SHARED ' .. with[1] .. ' ' .. with[2]})
		end
		error({err = 'MALFORMED tokensLeft is not a whole number from 0 to 2^53-1'})
	end
	return balance
end

-- milliseconds returns the time in Unix ms. Redis's clock goes on while a script runs.
local function milliseconds()
	local time = redis.call('TIME')
	return math.floor(time[1] * 1000 + time[2] / 1000)
end
