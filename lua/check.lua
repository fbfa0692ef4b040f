-- Looks whether an API key may go on with what it has begun, whatever its balance, its rate and its holds are.
--
-- KEYS[1…5]  as settle.lua takes them, of which only [1] and [4] are used
-- ARGV[1…16] as exchange.lua takes them, of which only [1] to [4] and [16] are used
--
-- Returns {'allowed', the key's group}, or with 'off', 'disabled' or 'denied' why a hold is refused; nil if the
-- tenant has no such key. Or it returns {'group', …} or {'moved', …} as settle.lua does.

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'group', 'enabled', 'sharesWith')
if not isOwn(key) then
	return moved(KEYS[4])
elseif key[5] then
	readBalance()
end
local group = string.sub(key[3] or '', 1, 64)
if ARGV[4] ~= '' and ARGV[4] ~= group then
	return {'group', group}
end
return {refusal(sharer and sharer.off or key[4], group, ARGV[3], ARGV[16]) or 'allowed', group}
