-- Writes a tenant's config and adds it to the history.
--
-- KEYS[1]  tenant:<tenantId>:config
-- KEYS[2]  {tenant:<tenantId>:config}:history: the heads of the versions, newest first, '<ETag> <saved at> <saved by>'
-- KEYS[3]  {tenant:<tenantId>:config}:versions: ETag → config, for each version in the history
-- KEYS[4]  {tenant:<tenantId>:config}:adminTokens
-- KEYS[5]  {tenant:<tenantId>:config}:generation
-- ARGV[1]  'create' or 'seed': the tenant must not exist; 'replace': it must exist
-- ARGV[2]  config
-- ARGV[3]  its ETag, the SHA-1 of ARGV[2] in hex
-- ARGV[4]  the time
-- ARGV[5]  who saves it
-- ARGV[6]  SHA-256 of the caller's admin token, in hex; '' for the operator
-- ARGV[7]  the next generation. 'create' begins it if the ID was in use: a config that was deleted straight in Redis has
--          left API keys behind, which are not the new tenant's. 'seed' does not, as several processes may seed
-- ARGV[8]  '1' if the set of tenants had the ID before
-- ARGV[9…] conditions: if there are any '=<ETag>', one must be that of the config; no '!<ETag>' may be; 'none' never
--          holds
--
-- Returns 'saved'; or 'exists', 'missing', 'revoked' (the token) or 'changed': then nothing was written.

local kept = 20 -- versions

-- remember adds a version to the history, unless it is the newest there, and drops those beyond kept.
local function remember(etag, by, config)
	local heads = call('LRANGE', KEYS[2], 0, -1)
	if heads[1] and string.sub(heads[1], 1, 40) == etag then
		return
	end
	call('HSET', KEYS[3], etag, config)
	call('LPUSH', KEYS[2], etag .. ' ' .. ARGV[4] .. ' ' .. by)
	local used = {[etag] = true}
	for i, head in ipairs(heads) do
		local version = string.sub(head, 1, 40)
		if i < kept then
			used[version] = true
		elseif not used[version] then -- the same config may have been saved twice
			call('HDEL', KEYS[3], version)
		end
	end
	call('LTRIM', KEYS[2], 0, kept - 1)
end

local current = call('GET', KEYS[1])
local create = ARGV[1] ~= 'replace'
if create and current then
	return 'exists'
elseif not create and not current then
	return 'missing'
elseif ARGV[6] ~= '' and call('HEXISTS', KEYS[4], ARGV[6]) == 0 then
	return 'revoked'
end
local etag = current and redis.sha1hex(current)
local required, matched = false, false
for i = 9, #ARGV do
	if ARGV[i] == 'none' or ARGV[i] == '!' .. etag then
		return 'changed'
	elseif string.sub(ARGV[i], 1, 1) == '=' then
		required, matched = true, matched or ARGV[i] == '=' .. etag
	end
end
if required and not matched then
	return 'changed'
end

if create then
	local remains = call('UNLINK', KEYS[2], KEYS[3], KEYS[4]) -- of the former tenant
	if ARGV[1] == 'create' and (remains > 0 or ARGV[8] == '1') then
		call('SET', KEYS[5], ARGV[7])
	end
else
	remember(etag, 'redis', current) -- one that was written straight to Redis is not there yet
end
call('SET', KEYS[1], ARGV[2])
remember(ARGV[3], ARGV[5], ARGV[2])
return 'saved'
