-- Renews the lease of a hold: it gets a new deadline. If its tokens were returned, it takes them again, or as many as
-- are left.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<first>}:settled:<hold ID>, see settle.lua
-- KEYS[3] {apiKey:<apiKey>}:holds, see holds.lua
-- KEYS[4] {apiKey:<apiKey>}:closed, see close.lua
-- KEYS[5] {apiKey:<apiKey>}:first, which is not used
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] groups of the tenant, as charge.lua takes them; '' if none has a refill
-- ARGV[4] the only group that ARGV[3] has; '' if it has all
-- ARGV[5] hold ID
-- ARGV[6] milliseconds until the new deadline
-- ARGV[7] the name that the key had first, as far as the caller knows
-- ARGV[8] '', which settle.lua uses
-- ARGV[9] tokens that were held
-- ARGV[10] '', which settle.lua uses
--
-- Returns {'renewed'}; {'unknown'} if the hold was settled, or nothing is left to hold; nil if the tenant has no such
-- key. Or nothing was done, and it returns {'first', …}, {'group', …}, {'due'} or {'moved', …} as settle.lua does.

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'tokensHeld', 'holdsDue', 'advanced',
	'repaid', 'group', 'first', 'leases')
if not isOwn(key) then
	return call('EXISTS', KEYS[2]) == 1 and {'unknown'} or moved(KEYS[4])
elseif not key[3] then
	readBalance()
end
local deadline = milliseconds() + ARGV[6]
local hold = call('HGET', KEYS[3], ARGV[5])
if hold then -- holdsDue may now be too early, which costs one look at the holds
	call('HSET', KEYS[3], ARGV[5], string.format('%.0f %.0f', parseHold(hold), deadline))
	return {'renewed'}
end
local first, group = key[9] or ARGV[7], string.sub(key[8] or '', 1, 64)
if first ~= ARGV[7] then
	return {'first', first, ''}
elseif call('EXISTS', KEYS[2]) == 1 then
	return {'unknown'}
elseif ARGV[4] ~= '' and ARGV[4] ~= group then
	return {'group', group}
end
local ledger = newLedger(KEYS[3], key[3], key[4], key[5], key[6], key[7], key[10])
if updateLedger(KEYS[3], ledger, group, ARGV[3]) then
	return {'due'}
end
local tokens = math.min(tonumber(ARGV[9]), ledger.balance)
if tokens == 0 then
	return {'unknown'}
end
openHold(KEYS[3], ledger, ARGV[5], tokens, deadline, '')
return {'renewed'}
