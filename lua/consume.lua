-- Takes tokens from an API key's balance, all or none. It never makes a key and never changes an expiry.
--
-- KEYS[1] apiKey:<apiKey>
-- ARGV[1] tenant ID
-- ARGV[2] tokens to take, a whole number from 1 to 2^53-1
--
-- Returns {1, what is left}, {0, what is left} where that is fewer than asked for, or nil where the tenant has no such key.

local key = redis.call('HMGET', KEYS[1], 'tenantId', 'tokensLeft')
if key[1] ~= ARGV[1] then
	return nil
end
if tonumber(key[2]) < tonumber(ARGV[2]) then
	return {0, tonumber(key[2])}
end
return {1, redis.call('HINCRBY', KEYS[1], 'tokensLeft', '-' .. ARGV[2])}
