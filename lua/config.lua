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
-- ARGV[6…] the ETags of which the config must have one; none: it may have any
--
-- Returns the new ETag, or 'exists', 'missing' or 'changed': then nothing was written.

local kept = 20 -- versions

local current = redis.call('GET', KEYS[1])
if ARGV[1] == 'create' then
	if current then
		return 'exists'
	end
	redis.call('DEL', KEYS[2], KEYS[3]) -- of a tenant whose config was deleted straight in Redis
else
	if not current then
		return 'missing'
	end
	local etag = redis.sha1hex(current)
	local wanted = #ARGV < 6
	for i = 6, #ARGV do
		wanted = wanted or ARGV[i] == etag
	end
	if not wanted then
		return 'changed'
	end
	-- One that was put straight into Redis, or seeded, is not in the history yet.
	local newest = redis.call('LINDEX', KEYS[2], 0)
	if not newest or string.sub(newest, 1, 40) ~= etag then
		redis.call('LPUSH', KEYS[2], etag .. ' ' .. ARGV[4] .. ' redis\n' .. current)
	end
end
local etag = redis.sha1hex(ARGV[3])
redis.call('SET', KEYS[1], ARGV[3])
redis.call('LPUSH', KEYS[2], etag .. ' ' .. ARGV[4] .. ' ' .. ARGV[5] .. '\n' .. ARGV[3])
redis.call('LTRIM', KEYS[2], 0, kept - 1)
redis.call('SADD', KEYS[4], ARGV[2])
return etag
