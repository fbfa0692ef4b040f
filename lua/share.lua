-- Stores a new API key that shares the balance of another, unless the same request has stored it before: then it may be
-- that it was revoked or rotated since, and must not come back.
--
-- KEYS[1] apiKey:<apiKey> of the key that has the balance
-- KEYS[2] {apiKey:<first>}:shares: the keys that share with it by when they expire, in Unix ms; +inf: never. It may name
--         keys that do not exist
-- KEYS[3] apiKey:<apiKey> of the new key
-- KEYS[4] {apiKey:<new key>}:made: exists since the key was stored, for 40 days; omitted without an Idempotency-Key
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] the key that has the balance, and ARGV[4] the name that it had first, as far as the caller knows
-- ARGV[5] the new key
-- ARGV[6] the time
-- ARGV[7] time to live of the new key in milliseconds; 0: it never expires
-- ARGV[8] label, '' if it has none
-- ARGV[9] how many keys may share with one
-- ARGV[10] 'replay' if nothing may be stored; else ''
--
-- Returns {'made'}. Or nothing was stored, and it returns
--   nil         if the tenant has no such key, or if that shares with another
--   {'before'}  if the same request has stored it
--   {'new'}     if it has not, and ARGV[10] is 'replay'
--   {'first', the name that the key had first}  if that is not ARGV[4]
--   {'full'}    if as many keys share with it as may

if KEYS[4] and call('EXISTS', KEYS[4]) == 1 then
	return {'before'}
elseif ARGV[10] == 'replay' then
	return {'new'}
end
local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'userId', 'first', 'sharesWith')
if not isOwn(key) or key[5] then
	return nil
elseif (key[4] or ARGV[3]) ~= ARGV[4] then
	return {'first', key[4] or ARGV[3]}
end
local expired = call('ZRANGE', KEYS[2], '-inf', '(' .. string.format('%.0f', milliseconds()), 'BYSCORE')
if expired[1] then
	call('ZREM', KEYS[2], unpack(expired))
end
if call('ZCARD', KEYS[2]) >= tonumber(ARGV[9]) then
	return {'full'}
end

local fields = {'tenantId', ARGV[1], 'createdAt', ARGV[6], 'sharesWith', ARGV[3], 'sharesFirst', ARGV[4]}
if ARGV[2] ~= '' then
	fields[#fields + 1], fields[#fields + 2] = 'generation', ARGV[2]
end
if key[3] then
	fields[#fields + 1], fields[#fields + 2] = 'userId', key[3]
end
if ARGV[8] ~= '' then
	fields[#fields + 1], fields[#fields + 2] = 'label', ARGV[8]
end
call('HSET', KEYS[3], unpack(fields))

-- If Redis denies a command from here on, the key is undone: nobody would learn of it.
local denied, expires
if ARGV[7] ~= '0' then
	denied = errorOf(pcall('PEXPIRE', KEYS[3], ARGV[7]))
	expires = call('PEXPIRETIME', KEYS[3])
end
denied = denied or errorOf(pcall('ZADD', KEYS[2], expires or '+inf', ARGV[5]))
if KEYS[4] and not denied then
	denied = errorOf(pcall('SET', KEYS[4], '', 'PX', 40 * day))
end
if denied then
	call('DEL', KEYS[3])
end
return denied or {'made'}
