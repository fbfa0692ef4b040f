-- Deletes an API key.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate
-- ARGV[1] tenant ID
--
-- Returns 1, or 0 if the tenant has no such key.

if redis.call('HGET', KEYS[1], 'tenantId') ~= ARGV[1] then
	return 0
end
redis.call('DEL', KEYS[1], KEYS[2])
return 1
