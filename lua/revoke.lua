-- Deletes an API key.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate
-- KEYS[3] {apiKey:<apiKey>}:holds
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
--
-- Returns 1, or 0 if the tenant has no such key.

local key = redis.call('HMGET', KEYS[1], 'tenantId', 'generation')
if key[1] ~= ARGV[1] or (key[2] or '') ~= ARGV[2] then
	return 0
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
return 1
