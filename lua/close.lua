-- Closes a temp_ API key in favour of a user and returns what was left of it, which is remembered: so that a caller
-- that has lost the reply may repeat it. Tokens that the key holds at that time are not part of it.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate
-- KEYS[3] {apiKey:<apiKey>}:holds, see holds.lua
-- KEYS[4] {apiKey:<apiKey>}:closed: '<tokens> <user>'
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] the user
-- ARGV[4] milliseconds for which KEYS[4] is remembered
-- ARGV[5] 'moved' if the tokens were added to the user's key: then nothing is left, even if that key is revoked later
--         and the user signs in again; else omitted
--
-- Returns the tokens; nil if the tenant has no such key, or it is disabled, or was closed in favour of somebody else.

local closed = call('GET', KEYS[4])
if closed then
	local tokens, user = string.match(closed, '^(%d+) (.*)$')
	if user == ARGV[3] and ARGV[5] then
		call('SET', KEYS[4], '0 ' .. user, 'KEEPTTL')
	end
	return user == ARGV[3] and tokens or nil
end
local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'holdsDue', 'enabled')
if not isOwn(key) or key[5] == '0' then
	return nil
end
local balance = returnExpired(KEYS[3], key[4], readBalance(key[3]), milliseconds())
local tokens = string.format('%.0f', balance)
call('SET', KEYS[4], tokens .. ' ' .. ARGV[3], 'PX', ARGV[4])
call('DEL', KEYS[1], KEYS[2], KEYS[3])
return tokens
