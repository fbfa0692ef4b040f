-- Changes an API key, if requested, and returns it, in one atomic step.
--
-- The Go code puts a first line before this file, with flags for Redis: what does not need memory runs even if Redis's
-- memory is full. After that it puts refill.lua.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] the record of the request's Idempotency-Key; omitted without one
-- KEYS[3] (or 2) {apiKey:<apiKey>}:holds, if ARGV[8] is not ''
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] 'add' or 'set': what to do to the balance; '': nothing
-- ARGV[4] by or to how many tokens, a whole number up to ± 2^53-1
-- ARGV[5] the new group; '': the group stays
-- ARGV[6] digest of the request; '' without an Idempotency-Key
-- ARGV[7] '0' to disable the key, '1' to enable it; '': neither
-- ARGV[8] milliseconds after which it expires, '0' for never; '': the expiry stays
-- ARGV[9] the tenant's groups, as charge.lua takes them; '' if none has a refill
-- ARGV[10] the only group that ARGV[9] has; '' if it has all
--
-- Returns {userId, group, createdAt, tokensLeft, expiry (Unix time in ms; negative: never), '0' if the key is disabled,
-- refilledAt}, with an eighth element if these are those of the first time; nil if the tenant has no such key. Or nothing
-- was changed, except that a refill that was due may have been, and it returns
--   due       a hold has expired whose tokens must be returned first
--   below     the balance would be below 0
--   above     the balance would be above 2^53-1
--   mismatch  KEYS[2] remembers another request
--   group     with a newline and the group that the key has or would have, if that is not ARGV[10]

local call, pcall = redis.call, redis.pcall

local function failed(result)
	return type(result) == 'table' and result.err
end

local key = call('HMGET', KEYS[1], 'tenantId', 'tokensLeft', 'createdAt', 'generation', 'userId', 'group', 'holdsDue',
	'enabled')
if key[1] ~= ARGV[1] or (key[4] or '') ~= ARGV[2] then
	return nil
end
if key[7] then
	local time = call('TIME')
	if tonumber(key[7]) <= time[1] * 1000 + time[2] / 1000 then
		return 'due'
	end
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
if not string.find(key[3] or '', '^%d%d%d%d%-%d%d%-%d%dT') then
	return redis.error_reply('ERR createdAt is not a time')
end
local balance = key[2] or ''
if ARGV[3] ~= 'set' and balance ~= '0'
	and (not string.find(balance, '^[1-9]%d*$') or tonumber(balance) > 9007199254740991) then
	return redis.error_reply('ERR tokensLeft is not a whole number from 0 to 2^53-1')
end
local refilledAt = ''
local _, found = string.find(ARGV[9], '\255' .. group .. '\254', 1, true)
if found then
	local refilled = tonumber(balance) or 0
	refilled, refilledAt = refillBalance(refilled, ARGV[9], found + 1)
	balance = ARGV[3] == 'set' and balance or string.format('%.0f', refilled)
end
if ARGV[3] ~= '' then
	local left = tonumber(ARGV[4])
	if ARGV[3] == 'add' then
		left = left + tonumber(balance)
	end
	if left < 0 then
		return 'below'
	elseif left > 9007199254740991 then
		return 'above'
	end
	balance = string.format('%.0f', left)
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
	call('HSET', record, 'request', ARGV[6], 'userId', key[5] or '', 'group', group, 'createdAt', key[3],
		'tokensLeft', balance, 'expiresAt', expires, 'enabled', enabled, 'refilledAt', refilledAt)
	local result = pcall('PEXPIRE', record, 86400000)
	if failed(result) then -- undo the record
		call('DEL', record)
		return result
	end
end
local fields = {}
if ARGV[3] ~= '' then
	fields = {'tokensLeft', balance}
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
	local result = pcall('HSET', KEYS[1], unpack(fields))
	if failed(result) then
		if record then
			call('PEXPIRE', record, 0) -- undo the record; unlike DEL, this is allowed: it was before
		end
		return result
	end
end
return {key[5] or '', group, key[3], balance, expires, enabled, refilledAt}
