-- Renames an API key, with all that belongs to it, unless the same request has renamed it before.
--
-- KEYS[1…4] apiKey:<apiKey> and {apiKey:<apiKey>}:rate, :holds and :moves
-- KEYS[5…8] the same of the new key
-- KEYS[9]   {apiKey:<apiKey>}:successor, which becomes the new key, see user.lua
-- KEYS[10]  the record of the request's Idempotency-Key, which is kept for a day; omitted without one
-- ARGV[1]   tenant ID
-- ARGV[2]   the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3]   the new key
-- ARGV[4]   milliseconds for which KEYS[9] is remembered, unless its user signs in: then it stays until the sign-in
--           knows
--
-- Returns {new key, tokens left, user ID or '', 1 if the user signs in, 1 if these are those of the first time}; nil if
-- the tenant has no such key.

if KEYS[10] then
	local before = call('HMGET', KEYS[10], 'apiKey', 'tokensLeft', 'userId', 'signIn')
	if before[1] then
		return {before[1], before[2], before[3], before[4], 1}
	end
end
local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'userId', 'signIn', 'holdsDue')
if not isOwn(key) then
	return nil
end
local balance = returnExpired(KEYS[3], key[6], readBalance(key[3]), milliseconds())
local left, user, signIn = string.format('%.0f', balance), key[4] or '', key[5] and 1 or 0

local denied = errorOf(pcall('RENAME', KEYS[1], KEYS[5]))
if denied then
	return denied
end
for i = 2, 4 do
	if call('EXISTS', KEYS[i]) == 1 then
		call('RENAME', KEYS[i], KEYS[i + 4])
	end
end
if signIn == 1 then
	call('SET', KEYS[9], ARGV[3])
else
	call('SET', KEYS[9], ARGV[3], 'PX', ARGV[4])
end
if KEYS[10] then
	call('HSET', KEYS[10], 'apiKey', ARGV[3], 'tokensLeft', left, 'userId', user, 'signIn', signIn)
	call('PEXPIRE', KEYS[10], day)
end
return {ARGV[3], left, user, signIn, 0}
