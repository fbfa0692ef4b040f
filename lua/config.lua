-- Writes a tenant's config and adds it to the history, in one atomic step.
--
-- KEYS[1]  tenant:<tenantId>:config
-- KEYS[2]  {tenant:<tenantId>:config}:history, newest first, each '<ETag> <saved at> <saved by>', a newline, and the config
-- KEYS[3]  {tenant:<tenantId>:config}:adminTokens
-- ARGV[1]  'create': the tenant must not exist; 'replace': it must exist
-- ARGV[2]  config
-- ARGV[3]  the time
-- ARGV[4]  who saves it
-- ARGV[5]  SHA-256 of the caller's admin token, in hex; '' for the operator
-- ARGV[6…] conditions: if there are any '=<ETag>', one must be that of the config; no '!<ETag>' may be; 'none' never holds
--
-- Returns the new ETag, or 'exists', 'missing', 'revoked' (the token) or 'changed': then nothing was written.

local kept = 20 -- versions

-- remember adds a version to the history, unless it is the newest there.
local function remember(etag, by, config)
	local newest = redis.call('LINDEX', KEYS[2], 0)
	if not newest or string.sub(newest, 1, 40) ~= etag then
		redis.call('LPUSH', KEYS[2], etag .. ' ' .. ARGV[3] .. ' ' .. by .. '\n' .. config)
		redis.call('LTRIM', KEYS[2], 0, kept - 1)
	end
end

local current = redis.call('GET', KEYS[1])
local create = ARGV[1] == 'create'
if create and current then
	return 'exists'
elseif not create and not current then
	return 'missing'
elseif ARGV[5] ~= '' and redis.call('HEXISTS', KEYS[3], ARGV[5]) == 0 then
	return 'revoked'
end
local etag = current and redis.sha1hex(current)
local asked, matched = false, false
for i = 6, #ARGV do
	if ARGV[i] == 'none' or ARGV[i] == '!' .. etag then
		return 'changed'
	elseif string.sub(ARGV[i], 1, 1) == '=' then
		asked, matched = true, matched or ARGV[i] == '=' .. etag
	end
end
if asked and not matched then
	return 'changed'
end

if create then
	redis.call('DEL', KEYS[2], KEYS[3]) -- of a tenant whose config was deleted straight in Redis
else
	remember(etag, 'redis', current) -- one that was written straight to Redis is not there yet
end
redis.call('SET', KEYS[1], ARGV[2])
etag = redis.sha1hex(ARGV[2])
remember(etag, ARGV[4], ARGV[2])
return etag
