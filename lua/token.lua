-- Adds an admin token of a tenant.
--
-- KEYS[1] tenant:<tenantId>:config
-- KEYS[2] {tenant:<tenantId>:config}:adminTokens
-- ARGV[1] SHA-256 of the token, in hex
-- ARGV[2] the time
-- ARGV[3] SHA-256 of the caller's admin token, in hex; '' for the operator
-- ARGV[4] the most tokens that a tenant may have
--
-- Returns 'added'; 'missing' if the tenant does not exist; 'revoked' if the caller's token was, which must not create
-- another that outlives the revocation; or 'full'.

if call('EXISTS', KEYS[1]) == 0 then
	return 'missing'
elseif ARGV[3] ~= '' and call('HEXISTS', KEYS[2], ARGV[3]) == 0 then
	return 'revoked'
elseif call('HLEN', KEYS[2]) >= tonumber(ARGV[4]) then
	return 'full'
end
call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 'added'
