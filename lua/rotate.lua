-- Renames an API key, with all that belongs to it, unless the same request has renamed it before. What is remembered of
-- it need not be renamed: that is named by the name that the key had first, which the key has as a field from now on.
--
-- KEYS[1…4] apiKey:<apiKey> and {apiKey:<apiKey>}:rate, :holds and :moves
-- KEYS[5…8] the same of the new key
-- KEYS[9]   {apiKey:<apiKey>}:successor, which becomes the new key, see user.lua
-- KEYS[10]  {apiKey:<apiKey>}:first, the name that the key had first, if <apiKey> is a later one: kept until 40 days
--           after the key has lost the name <apiKey>
-- KEYS[11]  {apiKey:<new key>}:first, the same
-- KEYS[12]  {apiKey:<first>}:current, the present name of a key that was rotated: kept as long as the key
-- KEYS[13]  the record of the request's Idempotency-Key, which is kept for 40 days; omitted without one
-- ARGV[1]   tenant ID
-- ARGV[2]   the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3]   the new key; '' if nothing may be renamed, but what KEYS[13] remembers is to be returned
-- ARGV[4]   milliseconds for which KEYS[9] is remembered, unless its user signs in: then it stays until the sign-in
--           knows
-- ARGV[5]   the name that the key had first, as far as the caller knows
--
-- Returns {new key, tokens left, user ID or '', 1 if the user signs in, 1 if these are those of the first time}; nil if
-- the tenant has no such key. Or nothing was done, and it returns {'first', the name that the key had first}, if that
-- is not ARGV[5], or {'new'}, if KEYS[13] remembers nothing and ARGV[3] is ''.

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'userId', 'signIn', 'first')
local own, first = isOwn(key), key[6]
if not own then
	first = KEYS[13] and call('GET', KEYS[10])
end
if first and first ~= ARGV[5] then
	return {'first', first}
end
if KEYS[13] then
	local before = call('HMGET', KEYS[13], 'apiKey', 'tokensLeft', 'userId', 'signIn')
	if before[1] then
		return {before[1], before[2], before[3], before[4], 1}
	end
end
if ARGV[3] == '' then
	return {'new'}
elseif not own then
	return nil
end
local left = string.format('%.0f', readBalance(key[3]))
local user, signIn = key[4] or '', key[5] and 1 or 0

local denied = errorOf(pcall('RENAME', KEYS[1], KEYS[5]))
if denied then
	return denied
end
for i = 2, 4 do
	if call('EXISTS', KEYS[i]) == 1 then
		call('RENAME', KEYS[i], KEYS[i + 4])
	end
end
call('HSET', KEYS[5], 'first', ARGV[5])
call('SET', KEYS[11], ARGV[5])
call('SET', KEYS[12], ARGV[3])
local expires = call('PEXPIRETIME', KEYS[5])
if expires > 0 then
	call('PEXPIREAT', KEYS[11], expires + 40 * day)
	call('PEXPIREAT', KEYS[12], expires)
end
call('PEXPIRE', KEYS[10], 40 * day)
if signIn == 1 then
	call('SET', KEYS[9], ARGV[3])
else
	call('SET', KEYS[9], ARGV[3], 'PX', ARGV[4])
end
if KEYS[13] then
	call('HSET', KEYS[13], 'apiKey', ARGV[3], 'tokensLeft', left, 'userId', user, 'signIn', signIn)
	call('PEXPIRE', KEYS[13], 40 * day)
end
return {ARGV[3], left, user, signIn, 0}
