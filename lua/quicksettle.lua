-- The quick form of settle.lua, for most holds of the gateway, of tenants without a refill. It does what settle.lua
-- does; or it changes nothing and returns '', and settle.lua must decide. That is so if the key has no such hold, if the
-- hold has a note, see holds.lua, if it was settled before, and in the states of a key that quickhold.lua leaves to
-- hold.lua. settle.lua takes Redis 1.7 times as long.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<first>}:settled:<hold ID>, which remembers the outcome
-- KEYS[3] {apiKey:<apiKey>}:holds, see holds.lua
-- ARGV[1] tenant ID
-- ARGV[2] hold ID, which begins with lease_
-- ARGV[3] tokens used, a whole number from 0 to 2^53-1
-- ARGV[4] the tenant's generation; omitted if it is ''
--
-- Returns two lines: 'settled <tokens charged> <tokens left>' and the key's group.

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'group', 'first', 'holdsDue', 'advanced',
	'tokensHeld', 'leases', 'hold:' .. ARGV[2])
local left, group, due = key[3], key[4] or '', key[6]
if key[1] ~= ARGV[1] or (key[2] or '') ~= (ARGV[4] or '') or not left or not due or key[7] or key[10]
	or #left > 16 or #due > 13 or #group > 64 or #ARGV[3] > 13 or left ~= '0' and not string.find(left, '^[1-9]%d*$')
	or key[5] and '{apiKey:' .. key[5] .. '}:settled:' .. ARGV[2] ~= KEYS[2] then
	return ''
end
local count, leased, sum = string.match(key[9] or '', '^([1-9]%d*) (%d+) ([1-9]%d*)$')
if not sum or sum ~= key[8] or #count > 4 or #leased > 13 or #sum > 13 or not string.find(due, '^[1-9]%d*$')
	or due / 1000 < call('TIME')[1] + 1 then
	return ''
end
local hold, isLast
if count == '1' and leased == sum then -- one command finds that it is the only one
	local all = call('HGETALL', KEYS[3])
	hold, isLast = all[1] == ARGV[2] and all[2], not all[3]
else
	hold = call('HGET', KEYS[3], ARGV[2])
end
local tokens, deadline = string.match(hold or '', '^(%d+) (%d+)$')
if not tokens or #tokens > 13 or #deadline > 16 or leased - tokens < 0 or sum - tokens < 0 then
	return ''
end
local charged, balance = ARGV[3], left + tokens
if balance > maxAmount then
	return ''
elseif charged + 0 > balance then
	charged = balance .. ''
end
left = balance - charged
left = left < 1e14 and left .. '' or string.format('%.0f', left)
if not call('SET', KEYS[2], ARGV[3] .. ' ' .. charged .. ' ' .. left, 'PX', tenMinutes, 'NX') then -- as leaseRecordTTL
	return ''
end
call('HDEL', KEYS[3], ARGV[2])
if isLast or isLast == nil and call('EXISTS', KEYS[3]) == 0 then
	call('HDEL', KEYS[1], 'tokensHeld', 'leases', 'holdsDue')
	call('HSET', KEYS[1], 'tokensLeft', left)
else
	sum = sum - tokens .. ''
	call('HSET', KEYS[1], 'tokensLeft', left, 'tokensHeld', sum,
		'leases', count - 1 .. ' ' .. leased - tokens .. ' ' .. sum)
end
return 'settled ' .. charged .. ' ' .. left .. '\n' .. group
