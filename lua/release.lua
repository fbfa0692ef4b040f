-- Returns the tokens of an API key's expired holds to its balance.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:holds, see holds.lua
--
-- Returns 1; 0 if the key does not exist.

local key = call('HMGET', KEYS[1], 'tokensLeft', 'tokensHeld', 'holdsDue', 'advanced', 'repaid')
if not key[1] then
	return 0
end
returnExpired(KEYS[2], newLedger(key[1], key[2], key[3], key[4], key[5]))
return 1
