-- Settles a hold: what was held beyond the tokens used goes back to the balance, what is missing is taken from it, down
-- to 0.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:settled:<hold ID>, which remembers the outcome
-- KEYS[3] {apiKey:<apiKey>}:holds, see holds.lua
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] hold ID
-- ARGV[4] tokens used, a whole number from 0 to 2^53-1
-- ARGV[5] seconds for which the outcome is remembered
--
-- Returns {outcome, tokens charged, tokens left, the key's group}; nil if the tenant has no such key. The outcome is
--   settled
--   replayed  it was settled with the same tokens before; the numbers are those of the first time
--   mismatch  it was settled with another number of tokens
--   unknown   there is no such hold, or it has expired

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'holdsDue', 'group')
if not isOwn(key) then
	return nil
end
local group = string.sub(key[5] or '', 1, 64) -- no config has a longer one
local balance = returnExpired(KEYS[3], key[4], readBalance(key[3]), milliseconds())
local before = call('GET', KEYS[2])
if before then
	local used, charged, left = string.match(before, '^(%d+) (%d+) (%d+)$')
	if not used then
		error('malformed record of a settled hold')
	elseif used ~= ARGV[4] then
		return {'mismatch', '0', '0', ''}
	end
	return {'replayed', charged, left, group}
end
local hold = call('HGET', KEYS[3], ARGV[3])
if not hold then
	return {'unknown', '0', '0', ''}
end
local held = parseHold(hold)
local charged = math.min(tonumber(ARGV[4]), held + balance)
local left = math.min(balance + held - charged, maxAmount)
call('SET', KEYS[2], string.format('%s %.0f %.0f', ARGV[4], charged, left), 'EX', ARGV[5])
call('HDEL', KEYS[3], ARGV[3])
if call('EXISTS', KEYS[3]) == 0 then
	call('HDEL', KEYS[1], 'holdsDue') -- else it may now be too early, which costs one look at the holds
end
addTokens(balance, held - charged)
return {'settled', string.format('%.0f', charged), string.format('%.0f', left), group}
