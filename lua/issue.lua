-- Stores a new API key with its expiry, unless the same request has stored one before.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] the record of the request's Idempotency-Key, which is kept for 40 days; omitted without one
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] group
-- ARGV[4] the time
-- ARGV[5] balance
-- ARGV[6] user ID, '' for an anonymous user
-- ARGV[7] time to live of the key in milliseconds; 0: it never expires
-- ARGV[8] label, '' if it has none
-- ARGV[9] the API key, and ARGV[10] a digest of the request, as the record keeps them; ARGV[11] 'replay' if nothing may
--         be stored, else ''; all three are omitted without KEYS[2]
--
-- Returns 0 if the key was stored. Or nothing was written, and it returns {API key, balance} of the first time; or
-- 'mismatch' if KEYS[2] remembers another request, 'new' if it remembers none and ARGV[11] is 'replay'.

local before = KEYS[2] and issuedBefore(KEYS[2], ARGV[10], ARGV[11])
if before then
	return before
end
local fields = {'tenantId', ARGV[1], 'group', ARGV[3], 'createdAt', ARGV[4], 'tokensLeft', ARGV[5]}
if ARGV[2] ~= '' then
	fields[#fields + 1] = 'generation'
	fields[#fields + 1] = ARGV[2]
end
if ARGV[6] ~= '' then
	fields[#fields + 1] = 'userId'
	fields[#fields + 1] = ARGV[6]
end
if ARGV[8] ~= '' then
	fields[#fields + 1] = 'label'
	fields[#fields + 1] = ARGV[8]
end
call('HSET', KEYS[1], unpack(fields))

-- If Redis denies a command from here on, the key is undone: nobody would learn of it.
local denied
if ARGV[7] ~= '0' then
	denied = errorOf(pcall('PEXPIRE', KEYS[1], ARGV[7]))
end
if KEYS[2] and not denied then
	denied = errorOf(pcall('HSET', KEYS[2], 'request', ARGV[10], 'apiKey', ARGV[9], 'tokensLeft', ARGV[5]))
	if not denied then
		denied = errorOf(pcall('PEXPIRE', KEYS[2], 40 * day))
		if denied then
			call('DEL', KEYS[2])
		end
	end
end
if denied then
	call('DEL', KEYS[1])
end
return denied or 0
