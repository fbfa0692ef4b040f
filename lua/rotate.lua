-- Renames an API key, with all that belongs to it, unless the same request has renamed it before. What is remembered of
-- it need not be renamed: that is named by the name that the key had first, which the key has as a field from now on.
-- With a grace, the old name becomes a key that shares the balance for that time.
--
-- KEYS[1…4] apiKey:<apiKey> and {apiKey:<apiKey>}:rate, :holds and :moves
-- KEYS[5…8] the same of the new key
-- KEYS[9]   {apiKey:<apiKey>}:successor, which becomes the new key, see user.lua
-- KEYS[10]  {apiKey:<apiKey>}:first, the name that the key had first, if <apiKey> is a later one: kept until 40 days
--           after the key has lost the name <apiKey>
-- KEYS[11]  {apiKey:<new key>}:first, the same
-- KEYS[12]  {apiKey:<first>}:current, the present name of a key that was rotated: kept as long as the key, or for 40
--           days if it shares the balance of another
-- KEYS[13]  {apiKey:<first>}:shares, see share.lua, of the key that has the balance
-- KEYS[14]  the record of the request's Idempotency-Key, which is kept for 40 days; omitted without one
-- KEYS[15…] apiKey:<apiKey> of each key that shares with this one, in the order of ARGV[9…]; from KEYS[14] on without a
--           record
-- ARGV[1]   tenant ID
-- ARGV[2]   the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3]   the new key; '' if nothing may be renamed, but what KEYS[14] remembers is to be returned
-- ARGV[4]   milliseconds for which KEYS[9] is remembered, unless its user signs in: then it stays until the sign-in
--           knows
-- ARGV[5]   the name that the key had first, as far as the caller knows
-- ARGV[6]   the grace in milliseconds; 0: the old name is dead at once
-- ARGV[7]   the balance of the key that it shares with, as far as the caller knows; '' if it shares with none
-- ARGV[8]   how many keys may share with one
-- ARGV[9…]  the keys that share with this one, as far as the caller knows
--
-- Returns {new key, tokens left, user ID or '', 1 if the user signs in, 1 if these are those of the first time}; nil if
-- the tenant has no such key. Or nothing was done, and it returns
--   {'first', the name that the key had first}   other than ARGV[5]
--   {'shares', the keys that share with it …}    other than ARGV[9…]
--   {'new'}       KEYS[14] remembers nothing, and ARGV[3] is ''
--   {'mismatch'}  KEYS[14] remembers a rotation with another grace
--   {'full'}      as many keys share as may, and there is a grace
--   {'grace'}     the key was rotated, and is in its grace

local others = #ARGV - 8
local record = #KEYS - others > 13 and KEYS[14]
local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'userId', 'signIn', 'first', 'sharesWith',
	'sharesFirst', 'createdAt', 'label', 'enabled')
local own, first = isOwn(key), key[6]
if not own then
	first = record and call('GET', KEYS[10])
end
if first and first ~= ARGV[5] then
	return {'first', first}
end
if record then
	local before = call('HMGET', record, 'apiKey', 'tokensLeft', 'userId', 'signIn', 'grace')
	if before[1] and (before[5] or '0') ~= ARGV[6] then
		return {'mismatch'}
	elseif before[1] then
		return {before[1], before[2], before[3], before[4], 1}
	end
end
if ARGV[3] == '' then
	return {'new'}
elseif not own then
	return nil
end
local old = string.sub(KEYS[1], #'apiKey:' + 1)
local sharesWith, sharesFirst, grace = key[7], key[8], tonumber(ARGV[6])
if sharesFirst == ARGV[5] or sharesWith and (call('GET', KEYS[12]) or old) ~= old then
	return {'grace'}
end
local left = sharesWith and ARGV[7] or string.format('%.0f', readBalance(key[3]))
local user, signIn = key[4] or '', key[5] and 1 or 0
local sharing = sharesWith and {} or call('ZRANGE', KEYS[13], '0', '-1')
if table.concat(sharing, ' ') ~= table.concat(ARGV, ' ', 9) then
	return {'shares', unpack(sharing)}
end
local now = milliseconds()
if grace > 0 then
	local expired = call('ZRANGE', KEYS[13], '-inf', '(' .. string.format('%.0f', now), 'BYSCORE')
	if expired[1] then
		call('ZREM', KEYS[13], unpack(expired))
	end
	if call('ZCARD', KEYS[13]) >= tonumber(ARGV[8]) then
		return {'full'}
	end
end

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
if sharesWith then
	call('PEXPIRE', KEYS[12], 40 * day)
end
if expires > 0 then
	call('PEXPIREAT', KEYS[11], expires + 40 * day)
	call('PEXPIREAT', KEYS[12], expires)
end
call('PEXPIRE', KEYS[10], 40 * day + grace)
if signIn == 1 then
	call('SET', KEYS[9], ARGV[3])
else
	call('SET', KEYS[9], ARGV[3], 'PX', ARGV[4])
end

for i, name in ipairs(sharing) do
	local other = KEYS[#KEYS - others + i]
	if call('HGET', other, 'sharesFirst') == ARGV[5] then
		call('HSET', other, 'sharesWith', ARGV[3])
	else
		call('ZREM', KEYS[13], name)
	end
end
if sharesWith then
	call('ZREM', KEYS[13], old)
	call('ZADD', KEYS[13], expires > 0 and expires or '+inf', ARGV[3])
end
if grace > 0 then
	local ends = string.format('%.0f', expires > 0 and math.min(now + grace, expires) or now + grace)
	call('HSET', KEYS[1], 'tenantId', ARGV[1], 'first', ARGV[5], 'sharesWith', sharesWith or ARGV[3],
		'sharesFirst', sharesFirst or ARGV[5])
	for i, name in pairs({[2] = 'generation', [4] = 'userId', [9] = 'createdAt', [10] = 'label',
		[11] = sharesWith and 'enabled'}) do
		if name and key[i] then
			call('HSET', KEYS[1], name, key[i])
		end
	end
	call('PEXPIREAT', KEYS[1], ends)
	call('ZADD', KEYS[13], ends, old)
end
if record then
	call('HSET', record, 'apiKey', ARGV[3], 'tokensLeft', left, 'userId', user, 'signIn', signIn, 'grace', ARGV[6])
	call('PEXPIRE', record, 40 * day)
end
return {ARGV[3], left, user, signIn, 0}
