-- Deletes an API key, with those that share its balance.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate
-- KEYS[3] {apiKey:<apiKey>}:holds
-- KEYS[4] {apiKey:<apiKey>}:moves
-- KEYS[5] {apiKey:<apiKey>}:successor, see user.lua
-- KEYS[6] {apiKey:<apiKey>}:revoked: '<tenant ID> <generation> <user ID>' of a user who has signed in, so that the user
--         can be forgotten later, at least until the sign-in knows that the key was revoked; or '-', of a key in its grace
-- KEYS[7] {apiKey:<apiKey>}:first, see rotate.lua
-- KEYS[8] {apiKey:<first>}:current, see rotate.lua
-- KEYS[9] {apiKey:<ARGV[5]>}:shares, see share.lua
-- KEYS[10…] for each of the keys that share, in the order of ARGV[6…]: apiKey:<apiKey>, {apiKey:<apiKey>}:first
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] 'forget' if the user who has signed in is to be forgotten, too; else ''
-- ARGV[4] the name that the key had first, as far as the caller knows
-- ARGV[5] the name that the key with its balance had first, as far as the caller knows: itself, or the one that it shares
--         with
-- ARGV[6…] the keys in KEYS[9], as far as the caller knows
--
-- If the key was rotated with a grace, its former names that are in their grace are deleted, too.
--
-- Returns {'revoked', user ID or '', '1' if the user has signed in, else '', the other keys that were deleted …}; the
-- first three with 'gone' if the key was revoked before, and ARGV[3] is 'forget'. Or nothing was done, and it returns
--   nil                                            if the tenant has no such key
--   {'first', the name that the key had first}     if that is not ARGV[4]
--   {'shares', what ARGV[5] must be}               if that is another
--   {'shares', ARGV[5], what ARGV[6…] must be …}   if these are others

local tenant = ARGV[1] .. ' ' .. ARGV[2] .. ' '
local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'userId', 'signIn', 'first', 'sharesFirst')
if not isOwn(key) then
	local revoked = ARGV[3] == 'forget' and call('GET', KEYS[6]) or ''
	if string.sub(revoked, 1, #tenant) ~= tenant then
		return nil
	end
	call('SET', KEYS[5], 'forget')
	return {'gone', string.sub(revoked, #tenant + 1), '1'}
end
local first, shares = ARGV[4], key[6]
if key[5] and key[5] ~= first then
	return {'first', key[5]}
elseif (shares or first) ~= ARGV[5] then
	return {'shares', shares or first}
end
local all = call('ZRANGE', KEYS[9], '0', '-1')
if table.concat(all, ' ') ~= table.concat(ARGV, ' ', 6) then
	return {'shares', ARGV[5], unpack(all)}
end

if key[4] then
	call('SET', KEYS[6], tenant .. (key[3] or ''))
end
if key[4] and ARGV[3] == 'forget' then -- stays until the sign-in has forgotten the user
	call('SET', KEYS[5], 'forget')
end
local reply, old = {'revoked', key[3] or '', key[4] or ''}, string.sub(KEYS[1], #'apiKey:' + 1)
if shares == first or shares and (call('GET', KEYS[8]) or old) ~= old then
	-- In its grace: the key itself has another name now.
	call('SET', KEYS[6], '-', 'PX', day)
else
	for i, name in ipairs(all) do
		local other = call('HMGET', KEYS[8 + 2 * i], 'sharesFirst', 'first')
		if KEYS[8 + 2 * i] ~= KEYS[1] and other[shares and 2 or 1] == first then
			call('PEXPIRE', KEYS[9 + 2 * i], 40 * day)
			call('UNLINK', KEYS[8 + 2 * i])
			call('ZREM', KEYS[9], name)
			reply[#reply + 1] = name
		end
	end
	call('UNLINK', KEYS[8])
end
call('PEXPIRE', KEYS[7], 40 * day)
call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
call('ZREM', KEYS[9], old)
if not shares then
	call('UNLINK', KEYS[9])
end
return reply
