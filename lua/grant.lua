-- Gives an API key what a payment grants, once, and remembers that. What is malformed is found before anything is
-- written.
--
-- KEYS[1]  apiKey:<apiKey>
-- KEYS[2]  {apiKey:<apiKey>}:holds, see holds.lua
-- KEYS[3]  {apiKey:<first>}:paid:<ID>, see paid.lua
-- KEYS[4]  the same of the payment intent or subscription; omitted without one, or if that is in another slot
-- ARGV[1]  tenant ID
-- ARGV[2]  the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3]  groups of the tenant, as charge.lua takes them; '' if none has a refill
-- ARGV[4]  the only group that ARGV[3] has; '' if it has all
-- ARGV[5]  tokens to which the balance is raised, if it is lower, as a refill raises it: what open holds give back
--          repays that; 0: it is not
-- ARGV[6]  tokens to add then, as far as the balance stays at 2^53-1 or below
-- ARGV[7]  facts, as KEYS[3] has them
-- ARGV[8]  the customer at Stripe; '' if it is not known
-- ARGV[9]  'pack' or 'subscription'
-- ARGV[10] of a pack, what KEYS[4] becomes; of a subscription, its ID
-- ARGV[11] the group in which the key is while it is paid; '' if it is not paid; ARGV[11…14] are omitted for a pack
-- ARGV[12] the group when it is not paid; '': the one before
-- ARGV[13] '1' if it has ended for ever; else ''
-- ARGV[14] the version that the key's state had when ARGV[10…13] were asked for
--
-- Returns {'granted', KEYS[3], '1' if it had granted before, '1' if the key has another subscription that has not
-- ended}. Or nothing was done, except that a refill that was due may have been, and it returns
--   {'gone', KEYS[3] or ''}     if the tenant has no such key with a balance of its own
--   {'group', the key's group}  if that is not ARGV[4]
--   {'moved'}                   if the version is not ARGV[14]
--   {'due'}                     if more holds have expired, whose tokens must be returned first

local before = call('GET', KEYS[3]) or ''
if string.sub(before, 1, 8) == 'granted ' then
	return {'granted', before, '1', ''}
end
local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'tokensHeld', 'holdsDue', 'advanced',
	'repaid', 'group', 'leases', 'subscription', 'subscriptionVersion', 'groupBefore', 'sharesWith',
	'lastSubscription')
if not isOwn(key) or key[13] then -- the name may be that of a key that shares its successor's balance
	return {'gone', before}
end
local group = string.sub(key[8] or '', 1, 64) -- no config has a longer one
local version = key[11] or '0'
if ARGV[4] ~= '' and ARGV[4] ~= group then
	return {'group', group}
elseif ARGV[14] and ARGV[14] ~= version then
	return {'moved'}
end
local ledger = newLedger(KEYS[2], key[3], key[4], key[5], key[6], key[7], key[9])
if updateLedger(KEYS[2], ledger, group, ARGV[3]) then
	return {'due'}
end

local raised = math.max(ARGV[5] - ledger.balance, 0)
local balance = math.min(ledger.balance + raised + ARGV[6], maxAmount)
local fields = {'tokensLeft', string.format('%.0f', balance)}
if raised > 0 and ledger.due then
	fields[3], fields[4] = 'advanced', string.format('%.0f', math.min(ledger.advanced + raised, maxAmount))
end
if ARGV[8] ~= '' then
	fields[#fields + 1] = 'customer'
	fields[#fields + 1] = ARGV[8]
end
local second = ''
if ARGV[9] == 'subscription' then
	local paid, ended = ARGV[11], ARGV[13]
	if KEYS[4] and call('GET', KEYS[4]) == 'ended' then
		paid, ended = '', '1'
	end
	local present = key[10] or ''
	second = present ~= '' and present ~= ARGV[10] and '1' or ''
	addState(fields, present, version, key[12] or '', group, ARGV[10], paid, ARGV[12], ended, key[14] or '')
elseif KEYS[4] then
	call('SET', KEYS[4], ARGV[10], 'PX', paidFor)
end
local record = string.format('granted %.0f 0 0 0 = = %s', balance - ledger.balance, ARGV[7])
local denied = changePaid(KEYS[3], record, before, fields)
return denied or {'granted', record, '', second}
