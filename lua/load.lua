-- Reads a tenant's config and generation.
--
-- KEYS[1] tenant:<tenantId>:config
-- KEYS[2] {tenant:<tenantId>:config}:generation
--
-- Returns {config, generation}, either nil if it does not exist.

return {call('GET', KEYS[1]), call('GET', KEYS[2])}
