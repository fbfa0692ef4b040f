-- Deletes a tenant: its config, the config's history, and its admin tokens. Its API keys become invalid.
--
-- KEYS[1]  tenant:<tenantId>:config
-- KEYS[2]  {tenant:<tenantId>:config}:history
-- KEYS[3]  {tenant:<tenantId>:config}:versions
-- KEYS[4]  {tenant:<tenantId>:config}:adminTokens
-- KEYS[5]  {tenant:<tenantId>:config}:generation, which stays: each API key records the one in which it was created
-- ARGV[1]  the next generation
-- ARGV[2…] ETags, of which the config must have one; without them it may have any
--
-- Returns 1; -1 if the config has another ETag: then nothing was deleted; or 0 if the tenant does not exist: then what
-- a config that was deleted straight in Redis has left behind is deleted.

local exists = call('EXISTS', KEYS[1])
if call('EXISTS', KEYS[1], KEYS[2], KEYS[3], KEYS[4]) == 0 then
	return 0
elseif exists == 1 and ARGV[2] then
	local etag = redis.sha1hex(call('GET', KEYS[1]))
	local matched = false
	for i = 2, #ARGV do
		matched = matched or ARGV[i] == etag
	end
	if not matched then
		return -1
	end
end
local generation = call('GET', KEYS[5]) or '' -- '' if it has never been deleted
call('SET', KEYS[5], ARGV[1])
local denied = errorOf(pcall('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4]))
if denied then -- undo: the tenant is still there, and so are its keys
	call('SET', KEYS[5], generation)
end
return denied or exists
