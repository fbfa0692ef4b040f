-- Functions for scripts that look at an API key and its balance.
--
-- KEYS[1] apiKey:<apiKey>
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted

-- isOwn reports whether key, whose first fields are tenantId and generation, is the tenant's.
local function isOwn(key)
	return key[1] == ARGV[1] and (key[2] or '') == ARGV[2]
end

-- readBalance returns the field tokensLeft as a number.
local function readBalance(left)
	local balance = tonumber(left)
	if left ~= '0' and not string.find(left or '', '^[1-9]%d*$') or balance > maxAmount then
		error({err = 'MALFORMED tokensLeft is not a whole number from 0 to 2^53-1'})
	end
	return balance
end

-- milliseconds returns the time in Unix ms. Redis's clock goes on while a script runs.
local function milliseconds()
	local time = redis.call('TIME')
	return math.floor(time[1] * 1000 + time[2] / 1000)
end
