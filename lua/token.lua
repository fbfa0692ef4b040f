-- Keeps a tenant's admin token.
--
-- KEYS[1] tenant:<tenantId>:config
-- KEYS[2] {tenant:<tenantId>:config}:adminTokens
-- ARGV[1] SHA-256 of the token, in hex
-- ARGV[2] the time
--
-- Returns 1, or 0 where there is no such tenant.

if redis.call('EXISTS', KEYS[1]) == 0 then
	return 0
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
