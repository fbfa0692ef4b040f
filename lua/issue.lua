-- Stores a new API key with its expiry, unless the address of its client has used up its logins, in one atomic step.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] login:<address>: the times (µs, Redis's clock) of its logins in the last minute; omitted without a limit
-- ARGV[1] time to live of the key in milliseconds; 0: it never expires
-- ARGV[2] logins of the address in any minute; 0: no limit
-- ARGV[3] tenant ID
-- ARGV[4] group
-- ARGV[5] the time
-- ARGV[6] balance
-- ARGV[7] user ID; omitted for an anonymous user
--
-- Returns 0, or the seconds until the address may log in again: then nothing was written.

local limit, window = tonumber(ARGV[2]), 60 * 1000000

if limit > 0 then
	-- A sliding log on Redis's clock: the login that is `limit` back must be a whole window ago.
	local time = redis.call('TIME')
	local now = time[1] * 1000000 + time[2]
	local oldest = redis.call('LINDEX', KEYS[2], -limit)
	if oldest and oldest + window > now then
		return math.ceil((oldest + window - now) / 1000000)
	end
	redis.call('RPUSH', KEYS[2], string.format('%.0f', now))
	redis.call('LTRIM', KEYS[2], -limit, -1)
	local expires = redis.pcall('PEXPIRE', KEYS[2], window / 1000)
	if type(expires) == 'table' then -- Redis denies it: undo the login
		redis.call('LTRIM', KEYS[2], 0, -2)
		return expires
	end
end

redis.call('HSET', KEYS[1], 'tenantId', ARGV[3], 'group', ARGV[4], 'createdAt', ARGV[5], 'tokensLeft', ARGV[6])
if ARGV[7] then
	redis.call('HSET', KEYS[1], 'userId', ARGV[7])
end
if ARGV[1] ~= '0' then
	local expires = redis.pcall('PEXPIRE', KEYS[1], ARGV[1])
	if type(expires) == 'table' then -- Redis denies it: undo the key
		redis.call('DEL', KEYS[1])
		return expires
	end
end
return 0
