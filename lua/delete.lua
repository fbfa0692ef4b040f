-- Deletes a tenant: its config, the history of that, and its admin tokens.
--
-- KEYS[1] tenant:<tenantId>:config
-- KEYS[2] {tenant:<tenantId>:config}:history
-- KEYS[3] {tenant:<tenantId>:config}:adminTokens
-- KEYS[4] tenants
-- ARGV[1] tenant ID
--
-- Returns 1, or 0 where there is no such tenant; what a config that was deleted straight in Redis left behind is gone
-- then too.

local there = redis.call('EXISTS', KEYS[1])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('SREM', KEYS[4], ARGV[1])
return there
