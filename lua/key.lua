#!lua flags=allow-oom
-- Changes an API key, if requested, and returns it, in one atomic step. Its expiry stays.
--
-- KEYS[1] apiKey:<apiKey>
-- ARGV[1] tenant ID
-- ARGV[2] 'add' or 'set': what to do to the balance; '': nothing
-- ARGV[3] by or to how many tokens, a whole number up to ± 2^53-1
-- ARGV[4] the new group; omitted: the group stays
--
-- Returns {userId, group, createdAt, tokensLeft, expiry (Unix time in ms; negative: never)}; nil if the tenant has no such
-- key; or 'below' or 'above' if the balance would leave 0 … 2^53-1: then nothing was written.

local key = redis.call('HMGET', KEYS[1], 'tenantId', 'tokensLeft', 'createdAt')
if key[1] ~= ARGV[1] then
	return nil
end
if not string.find(key[3] or '', '^%d%d%d%d%-%d%d%-%d%dT') then
	return redis.error_reply('ERR createdAt is not a time')
end
local balance = key[2] or ''
if ARGV[2] ~= 'set' and balance ~= '0' and (not string.find(balance, '^[1-9]%d*$') or tonumber(balance) > 9007199254740991) then
	return redis.error_reply('ERR tokensLeft is not a whole number from 0 to 2^53-1')
end
if ARGV[2] ~= '' then
	local left = tonumber(ARGV[3])
	if ARGV[2] == 'add' then
		left = left + tonumber(key[2])
	end
	if left < 0 then
		return 'below'
	elseif left > 9007199254740991 then
		return 'above'
	end
end
-- The balance changes last: if Redis denies one of these commands, a caller that repeats them adds nothing twice.
if ARGV[4] then
	redis.call('HSET', KEYS[1], 'group', ARGV[4])
end
local expires = redis.call('PEXPIRETIME', KEYS[1])
if ARGV[2] == 'add' then
	redis.call('HINCRBY', KEYS[1], 'tokensLeft', ARGV[3])
elseif ARGV[2] == 'set' then
	redis.call('HSET', KEYS[1], 'tokensLeft', ARGV[3])
end
local shown = redis.call('HMGET', KEYS[1], 'userId', 'group', 'createdAt', 'tokensLeft')
shown[5] = expires
return shown
