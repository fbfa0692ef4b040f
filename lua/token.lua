-- Keeps a tenant's admin token.
--
-- KEYS[1] tenant:<tenantId>:config
-- KEYS[2] {tenant:<tenantId>:config}:adminTokens
-- ARGV[1] SHA-256 of the token, in hex
-- ARGV[2] the time
-- ARGV[3] SHA-256 of the admin token that asks for it, in hex; '' for the operator
--
-- Returns 1, 0 where there is no such tenant, or -1 where the asking token has been revoked: else one that asks just
-- then would outlive its own revocation.

if redis.call('EXISTS', KEYS[1]) == 0 then
	return 0
end
if ARGV[3] ~= '' and redis.call('HEXISTS', KEYS[2], ARGV[3]) == 0 then
	return -1
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
