-- Adds what was left of a temp_ API key, and its open holds, to a user's API key, once.
--
-- KEYS[1]  apiKey:<apiKey> of the user
-- KEYS[2]  {apiKey:<apiKey>}:moves: digest of a temp_ API key → when its tokens were added, in Unix ms, see moved.lua
-- KEYS[3]  {apiKey:<apiKey>}:holds, see holds.lua
-- ARGV[1]  tenant ID
-- ARGV[2]  the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3]  groups of the tenant, as charge.lua takes them; '' if none has a refill
-- ARGV[4]  the only group that ARGV[3] has; '' if it has all
-- ARGV[5]  digest of the temp_ API key; '' if nothing is to be added, but what is malformed is to be found
-- ARGV[6]  milliseconds for which KEYS[2] remembers it: longer than close.lua does
-- ARGV[7]  its tokens
-- ARGV[8]  what it was advanced, and ARGV[9] what of that is repaid, see holds.lua
-- ARGV[10…] for each of its open holds the ID, the tokens, the deadline and what was advanced when it was opened, as
--          close.lua returns them
--
-- Returns {'received', the number of open holds} if the tokens are part of the balance now or were before; nil if the
-- tenant has no such key. Or nothing was done, and it returns {'group', the key's group}, if that is not ARGV[4], or
-- {'due'}, if more holds have expired whose tokens must be returned first.

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'tokensHeld', 'holdsDue', 'advanced',
	'repaid', 'group', 'leases')
if not isOwn(key) then
	return nil
end
if call('HEXISTS', KEYS[2], ARGV[5]) == 1 then
	return {'received', '0'}
end
local group = string.sub(key[8] or '', 1, 64) -- no config has a longer one
if ARGV[4] ~= '' and ARGV[4] ~= group then
	return {'group', group}
end
local ledger = newLedger(KEYS[3], key[3], key[4], key[5], key[6], key[7], key[9])
if updateLedger(KEYS[3], ledger, group, ARGV[3]) then
	return {'due'}
end
if ARGV[5] == '' then
	local holds = call('HGETALL', KEYS[3])
	for i = 2, #holds, 2 do
		parseHold(holds[i])
	end
	return {'received', tostring(#holds / 2)}
end

local due = ledger.due
for i = 10, #ARGV, 4 do
	ledger.held = ledger.held + ARGV[i + 1]
	countLease(ledger, ARGV[i], ARGV[i + 1], 1)
	due = math.min(due or ARGV[i + 2], ARGV[i + 2])
end
local fields = {'tokensLeft', string.format('%.0f', math.min(ledger.balance + ARGV[7], maxAmount))}
if due then
	local held, leases = writeHeld(ledger)
	fields = {fields[1], fields[2], 'tokensHeld', held, 'leases', leases, 'holdsDue', string.format('%.0f', due)}
end
call('HSET', KEYS[2], ARGV[5], string.format('%.0f', milliseconds()))
local denied = errorOf(pcall('HSET', KEYS[1], unpack(fields)))
if denied then
	call('HDEL', KEYS[2], ARGV[5])
	return denied
end
call('PEXPIRE', KEYS[2], ARGV[6])
local debt = ARGV[8] ~= '0' and ARGV[5] or '-'
if debt ~= '-' and #ARGV > 9 then
	call('HSET', KEYS[1], 'debt:' .. debt, string.format('%d %s %s', (#ARGV - 9) / 4, ARGV[8], ARGV[9]))
end
for i = 10, #ARGV, 4 do
	call('HSET', KEYS[3], ARGV[i], ARGV[i + 1] .. ' ' .. ARGV[i + 2])
	if ledger.advanced > 0 or debt ~= '-' then
		local note = string.format('%.0f %s %s ', ledger.advanced, debt, ARGV[i + 3])
		call('HSET', KEYS[1], 'hold:' .. ARGV[i], note)
	end
end
local expires = #ARGV > 9 and call('PEXPIRETIME', KEYS[1]) or 0
if expires > 0 then -- the holds of a key end with it
	call('PEXPIREAT', KEYS[3], expires)
end
return {'received', '0'}
