-- Compares a tenant's config with one that was read before.
--
-- KEYS[1] tenant:<tenantId>:config
-- ARGV[1] SHA-1 of the config that was read, in hex
--
-- Returns 1 if they are equal, else 0.

local config = redis.call('GET', KEYS[1])
return config and redis.sha1hex(config) == ARGV[1] and 1 or 0
