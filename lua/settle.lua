-- Settles a hold: what was held beyond the tokens used goes back to the balance, what is missing is taken from it, down
-- to 0.
--
-- KEYS[1]  apiKey:<apiKey>
-- KEYS[2]  {apiKey:<first>}:settled:<hold ID>, which remembers the outcome
-- KEYS[3]  {apiKey:<apiKey>}:holds, see holds.lua
-- KEYS[4]  {apiKey:<apiKey>}:closed, see close.lua
-- KEYS[5]  {apiKey:<apiKey>}:first, see rotate.lua
-- KEYS[6]  {apiKey:<first>}:hold:<ARGV[8]>, see hold.lua; omitted if ARGV[8] is ''
-- ARGV[1]  tenant ID
-- ARGV[2]  the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3]  groups of the tenant, as charge.lua takes them; '' if none has a refill
-- ARGV[4]  the only group that ARGV[3] has; '' if it has all
-- ARGV[5]  hold ID
-- ARGV[6]  milliseconds for which an outcome that has charged something, and KEYS[6], are remembered; without a charge
--          it is 10 min
-- ARGV[7]  the name that the key had first, as far as the caller knows
-- ARGV[8]  the digest of the hold's Idempotency-Key, as far as the caller knows; else ''
-- ARGV[9]  tokens used, a whole number from 0 to 2^53-1
-- ARGV[10] 'late' if they are charged also if there is no such hold any more; else ''
--
-- Returns {outcome, tokens charged, tokens left, the key's group}; nil if the tenant has no such key. The outcome is
--   settled
--   replayed  it was settled with the same tokens before; the numbers are those of the first time
--   mismatch  it was settled with another number of tokens
--   unknown   there is no such hold, or it has expired
-- Or nothing was done, and it returns
--   {'first', the name that the key had first, the digest of the hold's Idempotency-Key}   other than ARGV[7], ARGV[8]
--   {'group', the key's group}   other than ARGV[4]
--   {'due'}        more holds have expired whose tokens must be returned first
--   {'moved', …}   the key was a visitor's, see visitor.lua

local function replay(before, group)
	local used, charged, left = string.match(before, '^(%d+) (%d+) (%d+)$')
	if not used then
		malformed('the record of a settled hold')
	elseif used ~= ARGV[9] then
		return {'mismatch', '0', '0', ''}
	end
	return {'replayed', charged, left, group}
end

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'tokensHeld', 'holdsDue', 'advanced',
	'repaid', 'group', 'first', 'hold:' .. ARGV[5], 'leases')
if not isOwn(key) then
	local to = moved(KEYS[4])
	if not to then
		return nil
	end
	local first = call('GET', KEYS[5])
	if first and first ~= ARGV[7] then
		return {'first', first, ''}
	end
	local before = call('GET', KEYS[2])
	return before and replay(before, '') or to
end
local first, group = key[9] or ARGV[7], string.sub(key[8] or '', 1, 64) -- no config has a longer group
local digest = string.match(key[10] or '', '^%d+ %S+ %d+ (.*)$') or ''
if first ~= ARGV[7] or digest ~= '' and digest ~= ARGV[8] then
	return {'first', first, digest}
end
local before = call('GET', KEYS[2])
if before then
	return replay(before, group)
end
if ARGV[4] ~= '' and ARGV[4] ~= group then
	return {'group', group}
end
local ledger = newLedger(KEYS[3], key[3], key[4], key[5], key[6], key[7], key[11])
if updateLedger(KEYS[3], ledger, group, ARGV[3]) then
	return {'due'}
end
local hold = call('HGET', KEYS[3], ARGV[5])
if not hold and ARGV[10] ~= 'late' then
	return {'unknown', '0', '0', ''}
end
local charged
if hold then
	charged = endHold(KEYS[3], ledger, ARGV[5], parseHold(hold), tonumber(ARGV[9]), key[10])
else
	charged = math.min(tonumber(ARGV[9]), ledger.balance)
	ledger.balance = ledger.balance - charged
end
local left = string.format('%.0f', ledger.balance)
local kept = charged > 0 and ARGV[6] or tenMinutes
charged = string.format('%.0f', charged)
call('SET', KEYS[2], ARGV[9] .. ' ' .. charged .. ' ' .. left, 'PX', kept)
if KEYS[6] then
	call('PEXPIRE', KEYS[6], kept)
end
saveLedger(KEYS[3], ledger)
return {'settled', charged, left, group}
