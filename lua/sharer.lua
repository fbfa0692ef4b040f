-- The part of a script that is called with an API key which shares the balance of another: the script works on the key
-- that has the balance. Each script on a balance has a second form with this file, which comes after balance.lua. The
-- first form, called with a key that shares, ends with the error that readBalance describes, so that keys which do not
-- share pay nothing for those that do.
--
-- KEYS[1]     apiKey:<apiKey> of the key that has the balance
-- KEYS[#KEYS] apiKey:<apiKey> of the one that shares it, which is taken off here
--
-- If that one does not exist or does not share this balance, isOwn is false.

sharer = {name = table.remove(KEYS)}
local fields = call('HMGET', sharer.name, 'tenantId', 'generation', 'sharesFirst', 'enabled', 'createdAt', 'label')
sharer.enabled, sharer.createdAt, sharer.label = fields[4], fields[5], fields[6]
sharer.off = sharer.enabled == '0' and '0' or nil
local shares = isOwn(fields) and fields[3] == (call('HGET', KEYS[1], 'first') or string.sub(KEYS[1], #'apiKey:' + 1))

local hasBalance = isOwn
local function isOwn(key)
	return shares and hasBalance(key)
end
