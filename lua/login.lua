-- Counts a login of a client's address, a checkout of an API key, or a test of a tenant's endpoint, unless the minute's
-- are used up.
--
-- KEYS[1] login:<address>, {apiKey:<first name>}:checkouts or {tenant:<tenantId>:config}:endpointTests: the times (µs,
--         Redis's clock) of those in the last minute
-- ARGV[1] how many there may be in any minute, at least 1
-- ARGV[2] given if Redis's memory is full: then the script writes nothing
--
-- Returns 0 if it was counted, -1 if it would have been but for ARGV[2], else the seconds until there may be another.

local limit, window = ARGV[1], 60 * 1000000

-- A sliding log: the login that is `limit` back must be a whole window ago.
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
local oldest = call('LINDEX', KEYS[1], -limit)
if oldest and tonumber(oldest) > now then -- written by a server whose clock was ahead: these count as now
	oldest = now
	if not ARGV[2] then
		local entries = call('LRANGE', KEYS[1], 0, -1)
		call('DEL', KEYS[1])
		for _, at in ipairs(entries) do
			call('RPUSH', KEYS[1], string.format('%.0f', math.min(tonumber(at), now)))
		end
		call('PEXPIRE', KEYS[1], window / 1000)
	end
end
if oldest and oldest + window > now then
	return math.ceil((oldest + window - now) / 1000000)
end
if ARGV[2] then
	return -1
end
call('RPUSH', KEYS[1], string.format('%.0f', now))
call('LTRIM', KEYS[1], -limit, -1)
local denied = errorOf(pcall('PEXPIRE', KEYS[1], window / 1000))
if denied then -- undo the login
	call('LTRIM', KEYS[1], 0, -2)
end
return denied or 0
