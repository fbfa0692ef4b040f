-- Deletes a tenant: its config, the config's history, and its admin tokens.
--
-- KEYS[1] tenant:<tenantId>:config
-- KEYS[2] {tenant:<tenantId>:config}:history
-- KEYS[3] {tenant:<tenantId>:config}:adminTokens
-- ARGV[1…] ETags, of which the config must have one; without them it may have any
--
-- Returns 1; -1 if the config has another ETag: then nothing was deleted; or 0 if the tenant does not exist: then what a
-- config that was deleted straight in Redis has left behind is deleted.

local exists = redis.call('EXISTS', KEYS[1])
if exists == 1 and ARGV[1] then
	local etag = redis.sha1hex(redis.call('GET', KEYS[1]))
	local matched = false
	for i = 1, #ARGV do
		matched = matched or ARGV[i] == etag
	end
	if not matched then
		return -1
	end
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
return exists
