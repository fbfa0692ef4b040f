-- Closes a temp_ API key in favour of a user's key, in steps that may be repeated: a caller takes what is left of it
-- and its open holds ('close'), adds both to the user's key (receive.lua), and says so ('moved').
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate
-- KEYS[3] {apiKey:<apiKey>}:holds, see holds.lua: stays until the holds were moved
-- KEYS[4] {apiKey:<apiKey>}:closed, of which earlier versions know the first form, and take the others for somebody
--         else's:
--         '<tokens> <owner>'                   closed, without open holds
--         '<tokens> <owner>\n<the user's key>' closed, with open holds
--         '- <owner>\n<the user's key>'        both were moved
-- KEYS[5] {apiKey:<apiKey>}:moving: KEYS[1] by another name, as long as KEYS[3] stays
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] groups of the tenant, as charge.lua takes them
-- ARGV[4] the only group that ARGV[3] has; '' if it has all
-- ARGV[5] 'look', 'close' or 'moved'
-- ARGV[6] the owner: '<tenant ID> <generation> <user ID>'
-- ARGV[7] the user's key
-- ARGV[8] milliseconds for which KEYS[3], [4] and [5] are kept until the tokens were moved
--
-- Returns nil if the tenant has no such key and nothing says that it was closed. Else, on 'look', {'open', the number of
-- its open holds}; {'closing', the same} if it is closed in favour of the owner, but not moved; {'refused'} if a charge
-- would be 403 or it was closed in favour of somebody else; or {'closed', …} if it was moved. On 'close', {'closed',
-- tokens, what was advanced, repaid (see holds.lua), then for each open hold its ID, tokens, deadline in Unix ms, and
-- what was advanced when it was opened}, or {'refused'}. On 'moved', {'closed', the name that the key had first or '',
-- then the digest of each Idempotency-Key of an open hold}. Or nothing was done, and it returns {'group', the key's
-- group}, if that is not ARGV[4], or {'due'}, if more holds have expired whose tokens must be returned first.

-- describe returns the reply to 'close' for the hash name, which is the key or, once it is closed, KEYS[5]: the tokens
-- given, and what the hash and KEYS[3] say of its open holds.
local function describe(name, tokens)
	local advanced = redis.call('HMGET', name, 'advanced', 'repaid')
	local reply = {'closed', tokens, advanced[1] or '0', advanced[2] or ''}
	local all = redis.call('HGETALL', KEYS[3])
	for i = 1, #all, 2 do
		local held, deadline = parseHold(all[i + 1])
		local n = #reply
		reply[n + 1], reply[n + 2], reply[n + 3] = all[i], string.format('%.0f', held), string.format('%.0f', deadline)
		reply[n + 4] = string.match(redis.call('HGET', name, 'hold:' .. all[i]) or '', '^%d+') or '0'
	end
	return reply
end

local closed = call('GET', KEYS[4])
if closed then
	local tokens, owner, to = string.match(closed, '^(%S+) ([^\n]*)\n?(.*)$')
	if owner ~= ARGV[6] then
		local tenant = ARGV[1] .. ' ' .. ARGV[2] .. ' '
		return string.sub(owner or '', 1, #tenant) == tenant and {'refused'} or nil
	elseif tokens == '-' then
		return ARGV[5] == 'moved' and {'closed', ''} or {'closed', '0', '0', ''}
	elseif ARGV[5] == 'look' then
		return {'closing', tostring(call('HLEN', KEYS[3]))}
	elseif ARGV[5] == 'close' then
		return describe(KEYS[5], tokens)
	end
	-- Whoever settles one of its holds by this key is sent to the user's key until the last deadline.
	local kept, holds = milliseconds() + tenMinutes, call('HGETALL', KEYS[3])
	local reply = {'closed', call('HGET', KEYS[5], 'first') or ''}
	for i = 1, #holds, 2 do
		local _, deadline = parseHold(holds[i + 1])
		kept = math.max(kept, deadline)
		reply[#reply + 1] = string.match(call('HGET', KEYS[5], 'hold:' .. holds[i]) or '', '^%d+ %- 0 (.+)$')
	end
	to = to ~= '' and to or ARGV[7]
	call('SET', KEYS[4], '- ' .. owner .. '\n' .. to, 'PXAT', string.format('%.0f', kept))
	call('UNLINK', KEYS[3], KEYS[5])
	return reply
end

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'tokensHeld', 'holdsDue', 'advanced',
	'repaid', 'group', 'enabled', 'leases')
if not isOwn(key) then
	return nil
end
local group = string.sub(key[8] or '', 1, 64) -- no config has a longer one
if ARGV[4] ~= '' and ARGV[4] ~= group then
	return {'group', group}
end
-- What is malformed must be found before anything is written.
local ledger = newLedger(KEYS[3], key[3], key[4], key[5], key[6], key[7], key[10])
describe(KEYS[1], '0')
if key[9] == '0' or not string.find(ARGV[3], '\255' .. group .. '\254', 1, true) then
	return {'refused'}
elseif ARGV[5] == 'look' then
	return {'open', tostring(call('HLEN', KEYS[3]))}
end
if updateLedger(KEYS[3], ledger, group, ARGV[3]) then
	return {'due'}
end
local tokens = string.format('%.0f', ledger.balance)
local reply = describe(KEYS[1], tokens)
if #reply > 4 then
	call('SET', KEYS[4], tokens .. ' ' .. ARGV[6] .. '\n' .. ARGV[7], 'PX', ARGV[8])
	call('RENAME', KEYS[1], KEYS[5])
	call('PEXPIRE', KEYS[5], ARGV[8])
	call('PEXPIRE', KEYS[3], ARGV[8])
	call('UNLINK', KEYS[2])
else
	call('SET', KEYS[4], tokens .. ' ' .. ARGV[6], 'PX', ARGV[8])
	call('UNLINK', KEYS[1], KEYS[2])
end
return reply
