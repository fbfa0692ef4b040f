-- Changes an API key, if requested, and returns it, in one atomic step. Its expiry stays.
--
-- The Go code puts a first line before this file, with flags for Redis: what does not need memory runs even if Redis's
-- memory is full.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] the record of the request's Idempotency-Key; omitted without one
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] 'add' or 'set': what to do to the balance; '': nothing
-- ARGV[4] by or to how many tokens, a whole number up to ± 2^53-1
-- ARGV[5] the new group; '': the group stays
-- ARGV[6] digest of the request; omitted without KEYS[2]
--
-- Returns {userId, group, createdAt, tokensLeft, expiry (Unix time in ms; negative: never)}, with a sixth element if these
-- are those of the first time; nil if the tenant has no such key; 'due' if a hold has expired whose tokens must be
-- returned first; 'below' or 'above' if the balance would leave 0 … 2^53-1; or 'mismatch' if KEYS[2] remembers another
-- request: in these cases nothing was written.

local call, pcall = redis.call, redis.pcall

local function failed(result)
	return type(result) == 'table' and result.err
end

local key = call('HMGET', KEYS[1], 'tenantId', 'tokensLeft', 'createdAt', 'generation', 'userId', 'group', 'holdsDue')
if key[1] ~= ARGV[1] or (key[4] or '') ~= ARGV[2] then
	return nil
end
if key[7] then
	local time = call('TIME')
	if tonumber(key[7]) <= time[1] * 1000 + time[2] / 1000 then
		return 'due'
	end
end
if KEYS[2] then
	local before = call('HMGET', KEYS[2], 'request', 'userId', 'group', 'createdAt', 'tokensLeft', 'expiresAt')
	if before[1] == ARGV[6] then
		return {before[2], before[3], before[4], before[5], before[6], 1}
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
local group = ARGV[5] ~= '' and ARGV[5] or key[6] or ''
local expires = call('PEXPIRETIME', KEYS[1])

-- The key changes last, in one command: if Redis denies one of these, the key is as it was, and a caller that repeats
-- the request finds no record of it.
if KEYS[2] then
	call('HSET', KEYS[2], 'request', ARGV[6], 'userId', key[5] or '', 'group', group, 'createdAt', key[3],
		'tokensLeft', balance, 'expiresAt', expires)
	local result = pcall('PEXPIRE', KEYS[2], 86400000)
	if failed(result) then -- undo the record
		call('DEL', KEYS[2])
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
if #fields > 0 then
	local result = pcall('HSET', KEYS[1], unpack(fields))
	if failed(result) then
		if KEYS[2] then
			call('PEXPIRE', KEYS[2], 0) -- undo the record; unlike DEL, this is allowed: it was before
		end
		return result
	end
end
return {key[5] or '', group, key[3], balance, expires}
