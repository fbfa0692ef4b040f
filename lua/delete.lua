-- Deletes a tenant: its config, the history of that, and its admin tokens.
--
-- KEYS[1] tenant:<tenantId>:config
-- KEYS[2] {tenant:<tenantId>:config}:history
-- KEYS[3] {tenant:<tenantId>:config}:adminTokens
-- KEYS[4] tenants
-- ARGV[1]  tenant ID
-- ARGV[2…] the ETags of which the config must have one; none: it may have any
--
-- Returns 1; -1 where the config has another ETag: then nothing was deleted; or 0 where there is no such tenant; what a
-- config that was deleted straight in Redis left behind is gone then too.

local there = redis.call('EXISTS', KEYS[1])
if there == 1 and ARGV[2] then
	local etag = redis.sha1hex(redis.call('GET', KEYS[1]))
	local matched = false
	for i = 2, #ARGV do
		matched = matched or ARGV[i] == etag
	end
	if not matched then
		return -1
	end
end
redis.call('SREM', KEYS[4], ARGV[1]) -- first, since junk under its key would refuse it
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
return there
