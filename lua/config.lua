-- Writes a tenant's config, and with it one more version of its history.
--
-- KEYS[1]  tenant:<tenantId>:config
-- KEYS[2]  {tenant:<tenantId>:config}:history, newest first, each '<ETag> <saved at> <saved by>', a newline, and the config
-- KEYS[3]  {tenant:<tenantId>:config}:adminTokens
-- KEYS[4]  tenants
-- ARGV[1]  'create': there must be none; 'replace': there must be one
-- ARGV[2]  tenant ID
-- ARGV[3]  config
-- ARGV[4]  the time
-- ARGV[5]  who saves it
-- ARGV[6]  SHA-256 of the admin token that asks for it, in hex; '' for the operator
-- ARGV[7…] conditions: of '=<ETag>', if there are any, one must be the config's; no '!<ETag>' may be; 'none' never holds
--
-- Returns the new ETag, or 'exists', 'missing', 'revoked' (the token) or 'changed': then nothing was written.

local kept = 20 -- versions

-- remember puts a version into the history, unless it is the newest there.
local function remember(etag, by, config)
	local newest = redis.call('LINDEX', KEYS[2], 0)
	if not newest or string.sub(newest, 1, 40) ~= etag then
		redis.call('LPUSH', KEYS[2], etag .. ' ' .. ARGV[4] .. ' ' .. by .. '\n' .. config)
		redis.call('LTRIM', KEYS[2], 0, kept - 1)
	end
end

local current = redis.call('GET', KEYS[1])
local create = ARGV[1] == 'create'
if create and current then
	return 'exists'
elseif not create and not current then
	return 'missing'
elseif ARGV[6] ~= '' and redis.call('HEXISTS', KEYS[3], ARGV[6]) == 0 then
	return 'revoked'
end
local etag = current and redis.sha1hex(current)
local asked, matched = false, false
for i = 7, #ARGV do
	if ARGV[i] == 'none' or ARGV[i] == '!' .. etag then
		return 'changed'
	elseif string.sub(ARGV[i], 1, 1) == '=' then
		asked, matched = true, matched or ARGV[i] == '=' .. etag
	end
end
if asked and not matched then
	return 'changed'
end

redis.call('SADD', KEYS[4], ARGV[2]) -- first, since junk under its key would refuse it
if create then
	redis.call('DEL', KEYS[2], KEYS[3]) -- of a tenant whose config was deleted straight in Redis
else
	remember(etag, 'redis', current) -- one that was put straight into Redis is not there yet
end
redis.call('SET', KEYS[1], ARGV[3])
etag = redis.sha1hex(ARGV[3])
remember(etag, ARGV[5], ARGV[3])
return etag
