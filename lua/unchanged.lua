-- Compares a tenant's config and generation with those that were read before.
--
-- KEYS[1] tenant:<tenantId>:config
-- KEYS[2] {tenant:<tenantId>:config}:generation
-- ARGV[1] SHA-1 of the config that was read, in hex
-- ARGV[2] the generation that was read, '' if there was none
--
-- Returns 1 if they are equal, else 0.

local config = call('GET', KEYS[1])
if config and redis.sha1hex(config) == ARGV[1] and (call('GET', KEYS[2]) or '') == ARGV[2] then
	return 1
end
return 0
