-- The part that settle.lua and exchange.lua have in common. As a function it would have to return a dozen values. It
-- takes the KEYS and the ARGV of settle.lua, and returns if nothing is to be done by this key. Else it leaves these
-- locals:
--   group                   of the key
--   ledger                  of the key, as it was written
--   outcome, charged, left  of settling, 'settled', 'replayed' or 'mismatch', as settle.lua returns them
--   before                  what was remembered of the hold; nil or false if it was settled just now
--
-- Only exchange.lua has ARGV[11] and more: if KEYS[2] of a visitor's key that is closed remembers the hold, that follows
-- what visitor.lua returns, and is given to the user's key as ARGV[17].

-- recall returns the outcome, and the tokens charged and left, of a hold that was settled before.
local function recall(before)
	local used, charged, left = string.match(before, '^(%d+) (%d+) (%d+)$')
	if not used then
		malformed('the record of a settled hold')
	elseif used ~= ARGV[9] then
		return 'mismatch', '0', '0'
	end
	return 'replayed', charged, left
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
	to[5] = call('GET', KEYS[2]) or nil
	if to[5] and not ARGV[11] then
		local outcome, charged, left = recall(to[5])
		return {outcome, charged, left, ''}
	end
	return to
elseif not key[3] then
	readBalance()
end
local first, group = key[9] or ARGV[7], string.sub(key[8] or '', 1, 64) -- no config has a longer group
local digest = string.match(key[10] or '', '^%d+ %S+ %d+ (.*)$') or ''
if first ~= ARGV[7] or digest ~= '' and digest ~= ARGV[8] then
	return {'first', first, digest}
elseif ARGV[4] ~= '' and ARGV[4] ~= group then
	return {'group', group}
end
local ledger = newLedger(KEYS[3], key[3], key[4], key[5], key[6], key[7], key[11])
if updateLedger(KEYS[3], ledger, group, ARGV[3]) then
	return {'due'}
end
local before = call('GET', KEYS[2]) or ARGV[17]
local outcome, charged, left
if before then
	outcome, charged, left = recall(before)
else
	local hold = call('HGET', KEYS[3], ARGV[5])
	if not hold and ARGV[10] ~= 'late' then
		return {'unknown', '0', '0', ''}
	end
	if hold then
		charged = endHold(KEYS[3], ledger, ARGV[5], parseHold(hold), tonumber(ARGV[9]), key[10])
	else
		charged = math.min(tonumber(ARGV[9]), ledger.balance)
		ledger.balance = ledger.balance - charged
	end
	local kept = charged > 0 and ARGV[6] or tenMinutes
	outcome, charged, left = 'settled', string.format('%.0f', charged), string.format('%.0f', ledger.balance)
	call('SET', KEYS[2], ARGV[9] .. ' ' .. charged .. ' ' .. left, 'PX', kept)
	if ARGV[8] ~= '' then
		call('PEXPIRE', KEYS[6], kept)
	end
	saveLedger(KEYS[3], ledger)
end
