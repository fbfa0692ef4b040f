-- Takes tokens out of an API key's balance and holds them until they are settled or a deadline passes. A refused hold
-- takes neither tokens nor rate. Most holds of the gateway are taken by quickhold.lua, which must lead to the same.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate, see rate.lua
-- KEYS[3] {apiKey:<apiKey>}:holds, see holds.lua
-- KEYS[4] {apiKey:<first>}:hold:<digest of the Idempotency-Key>, which remembers the outcome: until 10 min after the
--         deadline, or as settle.lua says; omitted without one
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] the most tokens to hold, a whole number from 1 to 2^53-1
-- ARGV[4] the fewest: if the balance is between the two, all of it is held
-- ARGV[5] hold ID, which begins with lease_ or extra_ if the hold is one of the gateway, see holds.lua: an extra_ one
--         counts neither for the rate nor among the requests under way
-- ARGV[6] time to live of the hold in milliseconds
-- ARGV[7] groups of the tenant, as charge.lua takes them
-- ARGV[8] the name that the key had first, as far as the caller knows
-- ARGV[9] words: with 'half', if the balance is between ARGV[4] and ARGV[3], only half of what it has beyond ARGV[4] is
--         held with that; with 'patient', if the balance and what the gateway holds cover ARGV[3], no less is held
-- ARGV[10] those of the groups that are denied what the hold is for, each as \255 name \254
-- ARGV[11] digest of the request, and ARGV[12] that of the Idempotency-Key; omitted without KEYS[4]
--
-- Returns nil if the tenant has no such key, else five lines: '<outcome> <tokens held> <tokens left> <deadline in Unix
-- ms>' and the state of a rate limit, if there is one, as charge.lua returns it; the hold ID; the name that the key had
-- first; the user ID; the group. If nothing was held, the tokens held are those of the gateway's holds of the key. The
-- outcome is
--   held
--   replayed  KEYS[4] is known; the rest is that of the first time, without the rate limit
--   mismatch  KEYS[4] remembers another request
--   first     the key had another name first than ARGV[8]: KEYS[4] is wrong
--   due       nothing was decided: more holds have expired whose tokens must be returned first
--   limited   over the rate
--   crowded   the key has as many open holds as it may have
--   busy      it has as many of the gateway as its group may have at a time
--   spent     fewer tokens are left than ARGV[4], or 'patient' wants
--   off       an admin has disabled the key
--   disabled  ARGV[7] does not have the key's group
--   denied    ARGV[10] has it

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'tokensHeld', 'holdsDue', 'advanced',
	'repaid', 'group', 'userId', 'enabled', 'first', 'leases')
if not isOwn(key) then
	return nil
end
local ledger = newLedger(KEYS[3], key[3], key[4], key[5], key[6], key[7], key[12])
local group, user, first = key[8] or '', key[9] or '', key[11] or ARGV[8]
if string.find(user, '\n', 1, true) then
	malformed('userId has a newline')
end

local function reply(outcome, held, left, deadline, id, rate)
	return string.format('%s %.0f %.0f %.0f', outcome, held, left, deadline) .. (rate or '') .. '\n' .. id
		.. '\n' .. first .. '\n' .. user .. '\n' .. string.sub(group, 1, 64)
end

if KEYS[4] then
	if first ~= ARGV[8] then
		return reply('first', 0, 0, 0, '')
	end
	local before = call('GET', KEYS[4])
	if before then
		local request, held, left, deadline, id = string.match(before, '^(%S+) (%d+) (%d+) (%d+) (%S+)$')
		if not request then
			malformed('the record of an Idempotency-Key')
		elseif request ~= ARGV[11] then
			return reply('mismatch', 0, ledger.balance, 0, '')
		end
		return reply('replayed', tonumber(held), tonumber(left), tonumber(deadline), id)
	end
end
local refused, found = refusal(sharer and sharer.off or key[10], group, ARGV[7], ARGV[10])
if refused then
	return reply(refused, 0, ledger.balance, 0, '')
end
local kind = string.sub(ARGV[5], 1, 6)
local limit, window
if kind ~= 'extra_' then
	limit, window = string.match(ARGV[7], '^(%d+) (%d+)', found + 1)
end
local remaining, oldest, start, entry -- see measureRate
local function rate()
	return limit and describeRate(limit, window, remaining, oldest, start)
end
if limit then
	remaining, oldest, start, entry = measureRate(limit, window)
	if remaining <= 0 then
		return reply('limited', 0, ledger.balance, 0, '', rate())
	end
end
if updateLedger(KEYS[3], ledger, group, ARGV[7]) then
	return reply('due', 0, 0, 0, '')
end
if call('HLEN', KEYS[3]) >= mostHolds then
	return reply('crowded', 0, ledger.balance, 0, '', rate())
end
local concurrent = kind == 'lease_' and string.match(ARGV[7], '^[^\252\255]*\252(%d+)', found + 1)
if concurrent and ledger.leases >= tonumber(concurrent) then
	return reply('busy', ledger.leased, ledger.balance, 0, '', rate())
end
local held = tokensToHold(ledger, tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[9])
if not held then
	return reply('spent', ledger.leased, ledger.balance, 0, '', rate())
end
local left, deadline = ledger.balance - held, milliseconds() + ARGV[6]
if limit then
	local denied = acceptRequest(entry, window)
	if denied then
		return denied
	end
	remaining, oldest = remaining - 1, oldest or entry
end
if KEYS[4] then
	local record = string.format('%s %.0f %.0f %.0f %s', ARGV[11], held, left, deadline, ARGV[5])
	call('SET', KEYS[4], record, 'PX', ARGV[6] + tenMinutes)
end
openHold(KEYS[3], ledger, ARGV[5], held, deadline, ARGV[12] or '')
return reply('held', held, left, deadline, ARGV[5], rate())
