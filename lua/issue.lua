-- Stores a new API key with its expiry, in one atomic step: unless the address of its client has used up its logins, or
-- the same request has stored a key before.
--
-- KEYS[1] apiKey:<apiKey>; omitted if only a login is to be counted
-- KEYS[2] (else 1) with ARGV[2] > 0: login:<address>, the times (µs, Redis's clock) of its logins in the last minute;
--         with ARGV[3]: the record of the request's Idempotency-Key; else omitted
-- ARGV[1] time to live of the key in milliseconds; 0: it never expires
-- ARGV[2] logins of the address in any minute; 0: no limit
-- ARGV[3] digest of a request with an Idempotency-Key, else ''; it and all that follow are omitted if only a login is to
--         be counted
-- ARGV[4] tenant ID
-- ARGV[5] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[6] group
-- ARGV[7] the time
-- ARGV[8] balance
-- ARGV[9] the API key, as the record keeps it; '' without one
-- ARGV[10] user ID; omitted for an anonymous user
--
-- Returns 0 if the key was stored; the seconds until the address may log in again, 'mismatch' if KEYS[2] remembers another
-- request, or {API key, balance} of the first time: then nothing was written.

local function failed(result)
	return type(result) == 'table' and result.err
end

local limit, window = tonumber(ARGV[2]), 60 * 1000000
local logins = KEYS[#KEYS]

if limit > 0 then
	-- A sliding log: the login that is `limit` back must be a whole window ago.
	local time = redis.call('TIME')
	local now = time[1] * 1000000 + time[2]
	local oldest = redis.call('LINDEX', logins, -limit)
	if oldest and tonumber(oldest) > now then -- written by a server whose clock was ahead: these count as now
		local entries = redis.call('LRANGE', logins, 0, -1)
		redis.call('DEL', logins)
		for _, at in ipairs(entries) do
			redis.call('RPUSH', logins, string.format('%.0f', math.min(tonumber(at), now)))
		end
		redis.call('PEXPIRE', logins, window / 1000)
		oldest = now
	end
	if oldest and oldest + window > now then
		return math.ceil((oldest + window - now) / 1000000)
	end
	redis.call('RPUSH', logins, string.format('%.0f', now))
	redis.call('LTRIM', logins, -limit, -1)
	local expires = redis.pcall('PEXPIRE', logins, window / 1000)
	if failed(expires) then -- undo the login
		redis.call('LTRIM', logins, 0, -2)
		return expires
	end
elseif (ARGV[3] or '') ~= '' then
	local before = redis.call('HMGET', KEYS[2], 'request', 'apiKey', 'tokensLeft')
	if before[1] == ARGV[3] then
		return {before[2], before[3]}
	elseif before[1] then
		return 'mismatch'
	end
end
if not ARGV[3] then
	return 0
end

local fields = {'tenantId', ARGV[4], 'group', ARGV[6], 'createdAt', ARGV[7], 'tokensLeft', ARGV[8]}
if ARGV[5] ~= '' then
	fields[#fields + 1] = 'generation'
	fields[#fields + 1] = ARGV[5]
end
if ARGV[10] then
	fields[#fields + 1] = 'userId'
	fields[#fields + 1] = ARGV[10]
end
redis.call('HSET', KEYS[1], unpack(fields))

-- If Redis denies a command from here on, the key is undone: nobody would learn of it.
local result
if ARGV[1] ~= '0' then
	result = redis.pcall('PEXPIRE', KEYS[1], ARGV[1])
end
if ARGV[3] ~= '' and not failed(result) then
	result = redis.pcall('HSET', KEYS[2], 'request', ARGV[3], 'apiKey', ARGV[9], 'tokensLeft', ARGV[8])
	if not failed(result) then
		result = redis.pcall('PEXPIRE', KEYS[2], 86400000)
		if failed(result) then
			redis.call('DEL', KEYS[2])
		end
	end
end
if failed(result) then
	redis.call('DEL', KEYS[1])
	return result
end
return 0
