-- Adds what was left of a temp_ API key to a user's API key, once.
--
-- KEYS[1] apiKey:<apiKey> of the user
-- KEYS[2] {apiKey:<apiKey>}:moves: digest of a temp_ API key → when its tokens were added, in Unix ms
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] digest of the temp_ API key
-- ARGV[4] its tokens
-- ARGV[5] milliseconds for which KEYS[2] remembers it: longer than close.lua does
--
-- Returns 1 if the tokens are part of the balance now or were before, 0 if the tenant has no such key.

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft')
if not isOwn(key) then
	return 0
end
local balance = readBalance(key[3])
local now, moves = milliseconds(), call('HGETALL', KEYS[2])
for i = 1, #moves, 2 do
	if moves[i] == ARGV[3] then
		return 1
	elseif tonumber(moves[i + 1]) < now - ARGV[5] then
		call('HDEL', KEYS[2], moves[i])
	end
end
call('HSET', KEYS[2], ARGV[3], string.format('%.0f', now))
call('PEXPIRE', KEYS[2], ARGV[5])
local sum = math.min(balance + tonumber(ARGV[4]), maxAmount)
local denied = errorOf(pcall('HSET', KEYS[1], 'tokensLeft', string.format('%.0f', sum)))
if denied then
	call('HDEL', KEYS[2], ARGV[3])
end
return denied or 1
