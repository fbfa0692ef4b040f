-- Creates the API key of a user who has signed in, unless it was created before: then it may be that it was revoked or
-- rotated since, and must not come back.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:successor: exists since the key was created, at least until the sign-in knows that it was.
--         It is '', the API key that has replaced it, or 'forget' if the user is to be forgotten
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] group
-- ARGV[4] the time
-- ARGV[5] balance
-- ARGV[6] user ID
--
-- Returns nil if the key was created, else KEYS[2].

local successor = call('GET', KEYS[2])
if successor then
	return successor
end
local fields = {
	'tenantId', ARGV[1], 'group', ARGV[3], 'createdAt', ARGV[4], 'tokensLeft', ARGV[5], 'userId', ARGV[6], 'signIn', '1',
}
if ARGV[2] ~= '' then
	fields[#fields + 1] = 'generation'
	fields[#fields + 1] = ARGV[2]
end
call('SET', KEYS[2], '')
local denied = errorOf(pcall('HSET', KEYS[1], unpack(fields)))
if denied then
	call('DEL', KEYS[2])
end
return denied
