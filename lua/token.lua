-- Adds an admin token of a tenant.
--
-- KEYS[1] tenant:<tenantId>:config
-- KEYS[2] {tenant:<tenantId>:config}:adminTokens
-- ARGV[1] SHA-256 of the token, in hex
-- ARGV[2] the time
-- ARGV[3] SHA-256 of the caller's admin token, in hex; '' for the operator
--
-- Returns 1; 0 if the tenant does not exist; or -1 if the caller's token was revoked, which must not create another
-- that outlives the revocation.

if call('EXISTS', KEYS[1]) == 0 then
	return 0
end
if ARGV[3] ~= '' and call('HEXISTS', KEYS[2], ARGV[3]) == 0 then
	return -1
end
call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
