-- Deletes an API key.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate
-- KEYS[3] {apiKey:<apiKey>}:holds
-- KEYS[4] {apiKey:<apiKey>}:moves
-- KEYS[5] {apiKey:<apiKey>}:successor, see user.lua
-- KEYS[6] {apiKey:<apiKey>}:revoked: '<tenant ID> <generation> <user ID>' of a user who has signed in, so that the user
--         can be forgotten later, at least until the sign-in knows that the key was revoked
-- KEYS[7] {apiKey:<apiKey>}:first, see rotate.lua
-- KEYS[8] {apiKey:<first>}:current, see rotate.lua
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] 'forget' if the user who has signed in is to be forgotten, too; else ''
-- ARGV[4] the name that the key had first, as far as the caller knows
--
-- Returns {'revoked', user ID or '', '1' if the user has signed in, else ''}; the same with 'gone' if the key was revoked
-- before, and ARGV[3] is 'forget'; {'first', the name that the key had first}, if that is not ARGV[4]: then nothing was
-- done; nil if the tenant has no such key.

local tenant = ARGV[1] .. ' ' .. ARGV[2] .. ' '
local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'userId', 'signIn', 'first')
if not isOwn(key) then
	local revoked = ARGV[3] == 'forget' and call('GET', KEYS[6]) or ''
	if string.sub(revoked, 1, #tenant) ~= tenant then
		return nil
	end
	call('SET', KEYS[5], 'forget')
	return {'gone', string.sub(revoked, #tenant + 1), '1'}
end
if key[5] and key[5] ~= ARGV[4] then
	return {'first', key[5]}
end
if key[4] then
	call('SET', KEYS[6], tenant .. (key[3] or ''))
end
if key[4] and ARGV[3] == 'forget' then -- stays until the sign-in has forgotten the user
	call('SET', KEYS[5], 'forget')
end
call('PEXPIRE', KEYS[7], 40 * day)
call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[8])
return {'revoked', key[3] or '', key[4] or ''}
