-- Returns the tokens of an API key's expired holds to its balance.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:holds, see holds.lua
--
-- Returns 1; 0 if the key does not exist.

local key = call('HMGET', KEYS[1], 'tokensLeft', 'tokensHeld', 'holdsDue', 'advanced', 'repaid', 'leases')
if not key[1] then
	return 0
end
returnExpired(KEYS[2], newLedger(KEYS[2], unpack(key)))
return 1
