-- Deletes an API key.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate
-- KEYS[3] {apiKey:<apiKey>}:holds
-- KEYS[4] {apiKey:<apiKey>}:moves
-- KEYS[5] {apiKey:<apiKey>}:successor, see user.lua
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] 'forget' if the user who has signed in is to be forgotten, too; else ''
--
-- Returns {user ID or '', '1' if the user has signed in, else ''}; nil if the tenant has no such key.

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'userId', 'signIn')
if not isOwn(key) then
	return nil
end
if key[4] and ARGV[3] == 'forget' then -- stays until the sign-in has forgotten the user
	call('SET', KEYS[5], 'forget')
end
call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
return {key[3] or '', key[4] or ''}
