-- Takes back from an API key what a payment has granted: the part that was refunded or is disputed, up to the balance.
-- If a dispute is won, gives back what it has taken.
--
-- KEYS[1]  apiKey:<apiKey>
-- KEYS[2]  {apiKey:<apiKey>}:holds, see holds.lua
-- KEYS[3]  {apiKey:<first>}:paid:<ID>, see paid.lua
-- ARGV[1]  tenant ID
-- ARGV[2]  the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3]  groups of the tenant, as charge.lua takes them; '' if none has a refill
-- ARGV[4]  the only group that ARGV[3] has; '' if it has all
-- ARGV[5]  'gone' if the key is known to be gone for ever: then nothing is taken or given; else ''
-- ARGV[6]  tokens that the refunds so far are for; fewer than before change nothing
-- ARGV[7]  ID of a dispute; '' if it is a refund
-- ARGV[8]  '0' if that is open, '1' if it is lost, '2' if it is won; a lower one than before changes nothing
-- ARGV[9]  the time, and ARGV[10] the charge, as KEYS[3] has them
--
-- Returns {'reversed', KEYS[3], the tokens by which the balance has changed now}. Or nothing was done, except that a
-- refill that was due may have been, and it returns {'unknown'} if the payment has granted nothing; {'gone'} if the
-- tenant has no such key with a balance of its own; {'group', …} or {'due'} as grant.lua does.

local maxDisputes, maxEntries = 20, 100

local before = call('GET', KEYS[3]) or ''
local all, refunded, taken, changes, disputes, entries, facts =
	string.match(before, '^granted (%d+) (%d+) (%d+) (%d+) (%S+) (%S+) (.*)$')
if not all then
	return {'unknown'}
end
taken = tonumber(taken)

-- target returns how many tokens are to be taken back in all.
local function target()
	if string.find(disputes, ':[01]') then
		return tonumber(all)
	end
	return tonumber(refunded)
end

local targetBefore = target()
if tonumber(ARGV[6]) > tonumber(refunded) then
	local more = math.min(ARGV[6], all)
	if string.find(disputes, ':[01]') then -- it was taken before, and is not to be given back
		taken = math.max(taken - (more - refunded), 0)
	end
	refunded = string.format('%.0f', more)
end
if ARGV[7] ~= '' then
	local list, count, state = '', 1, ARGV[8]
	for id, was in string.gmatch(disputes, ',([^,:]+):(%d)') do
		if id == ARGV[7] then
			state = math.max(was, state)
		else
			list, count = list .. ',' .. id .. ':' .. was, count + 1
		end
	end
	if count > maxDisputes then
		malformed('a payment has too many disputes')
	end
	disputes = list .. ',' .. ARGV[7] .. ':' .. state
end

local grown, change, fields = target() - targetBefore, 0, {}
if grown ~= 0 then
	local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'tokensHeld', 'holdsDue', 'advanced',
		'repaid', 'group', 'leases', 'sharesWith')
	if ARGV[5] ~= 'gone' then
		if not isOwn(key) or key[10] then
			return {'gone'}
		end
		local group = string.sub(key[8] or '', 1, 64)
		if ARGV[4] ~= '' and ARGV[4] ~= group then
			return {'group', group}
		end
		local ledger = newLedger(KEYS[2], key[3], key[4], key[5], key[6], key[7], key[9])
		if updateLedger(KEYS[2], ledger, group, ARGV[3]) then
			return {'due'}
		end
		if grown > 0 then
			change = -math.min(grown, ledger.balance)
		else
			change = math.min(taken, maxAmount - ledger.balance)
		end
		if ARGV[7] ~= '' then
			taken = taken - change
		end
		fields = {'tokensLeft', string.format('%.0f', ledger.balance + change)}
	end
	if entries == '=' then
		entries = ''
	end
	changes = changes + 1
	if changes > maxEntries then
		entries = string.gsub(entries, '^,[^,]*', '')
	end
	entries = string.format('%s,%d:%s:%.0f:%s:%s', entries, changes, ARGV[7] ~= '' and 'dispute' or 'refund', change,
		ARGV[9], ARGV[10])
end
local record = string.format('granted %s %s %.0f %d %s %s %s', all, refunded, taken, changes, disputes,
	entries, facts)
local denied = record ~= before and changePaid(KEYS[3], record, before, fields)
return denied or {'reversed', record, string.format('%.0f', change)}
