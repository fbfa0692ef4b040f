-- Changes an API key, if requested, and returns it.
--
-- KEYS[1]  apiKey:<apiKey>
-- KEYS[2]  the record of the request's Idempotency-Key, which is kept for a day; omitted without one
-- KEYS[3]  {apiKey:<apiKey>}:holds, which is KEYS[2] without a record; omitted if ARGV[8] is ''
-- ARGV[1]  tenant ID
-- ARGV[2]  the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3]  'add' or 'set': what to do to the balance; '': nothing
-- ARGV[4]  by or to how many tokens, a whole number up to ± 2^53-1
-- ARGV[5]  the new group; '': the group stays
-- ARGV[6]  digest of the request; '' without KEYS[2]
-- ARGV[7]  '0' to disable the key, '1' to enable it; '': neither
-- ARGV[8]  milliseconds after which it expires, '0' for never; '': the expiry stays
-- ARGV[9]  groups of the tenant, as charge.lua takes them; '' if none has a refill
-- ARGV[10] the only group that ARGV[9] has; '' if it has all
--
-- Returns {userId, group, createdAt, tokensLeft, expiry (Unix time in ms; negative: never), '0' if the key is disabled,
-- refilledAt}, with an eighth element if these are those of the first time; nil if the tenant has no such key. Or
-- nothing was changed, except that a refill that was due may have been, and it returns
--   due       a hold has expired whose tokens must be returned first
--   below     the balance would be below 0
--   above     the balance would be above 2^53-1
--   mismatch  KEYS[2] remembers another request
--   group     with a newline and the group that the key has or would have, if that is not ARGV[10]

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'createdAt', 'userId', 'group', 'holdsDue',
	'enabled')
if not isOwn(key) then
	return nil
end
local left, createdAt, user, due = key[3], key[4], key[5] or '', key[7]
if due and tonumber(due) <= milliseconds() then
	return 'due'
end
local group = ARGV[5] ~= '' and ARGV[5] or key[6] or ''
if ARGV[10] ~= '' and ARGV[10] ~= group then
	return 'group\n' .. group
end
local record = ARGV[6] ~= '' and KEYS[2]
if record then
	local before = call('HMGET', record, 'request', 'userId', 'group', 'createdAt', 'tokensLeft', 'expiresAt', 'enabled',
		'refilledAt')
	if before[1] == ARGV[6] then
		return {before[2], before[3], before[4], before[5], before[6], before[7] or '', before[8] or '', 1}
	elseif before[1] then
		return 'mismatch'
	end
end
if not string.find(createdAt or '', '^%d%d%d%d%-%d%d%-%d%dT') then
	malformed('createdAt is not a time')
end
-- A balance that is set may have been anything.
local balance = ARGV[3] == 'set' and (tonumber(left) or 0) or readBalance(left)
local refilledAt = ''
local _, found = string.find(ARGV[9], '\255' .. group .. '\254', 1, true)
if found then
	balance, refilledAt = refillBalance(balance, ARGV[9], found + 1)
end
if ARGV[3] == 'add' then
	balance = balance + ARGV[4]
elseif ARGV[3] == 'set' then
	balance = tonumber(ARGV[4])
end
if balance < 0 then
	return 'below'
elseif balance > maxAmount then
	return 'above'
end
if found or ARGV[3] ~= '' then
	left = string.format('%.0f', balance)
end
local enabled = ARGV[7] ~= '' and ARGV[7] or key[8] or ''

-- The key changes last, and its balance and group in one command: if Redis denies one of these, the balance is as it
-- was, and a caller that repeats the request finds no record of it.
if ARGV[8] == '0' then
	call('PERSIST', KEYS[1])
	call('PERSIST', KEYS[#KEYS])
elseif ARGV[8] ~= '' then
	call('PEXPIRE', KEYS[1], ARGV[8])
end
local expires = call('PEXPIRETIME', KEYS[1])
if ARGV[8] ~= '' and expires > 0 then -- the holds of a key end with it
	call('PEXPIREAT', KEYS[#KEYS], expires)
end
if record then
	call('HSET', record, 'request', ARGV[6], 'userId', user, 'group', group, 'createdAt', createdAt,
		'tokensLeft', left, 'expiresAt', expires, 'enabled', enabled, 'refilledAt', refilledAt)
	local denied = errorOf(pcall('PEXPIRE', record, day))
	if denied then -- undo the record
		call('DEL', record)
		return denied
	end
end
local fields = {}
if ARGV[3] ~= '' then
	fields = {'tokensLeft', left}
end
if ARGV[5] ~= '' then
	fields[#fields + 1] = 'group'
	fields[#fields + 1] = group
end
if ARGV[7] ~= '' then
	fields[#fields + 1] = 'enabled'
	fields[#fields + 1] = enabled
end
if #fields > 0 then
	local denied = errorOf(pcall('HSET', KEYS[1], unpack(fields)))
	if denied then
		if record then
			call('PEXPIRE', record, 0) -- undo the record; unlike DEL, this is allowed: it was before
		end
		return denied
	end
end
return {user, group, createdAt, left, expires, enabled, refilledAt}
