-- Sets what Stripe says of a subscription in an API key.
--
-- KEYS[1] apiKey:<apiKey>
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] ID of the subscription; ARGV[4] to ARGV[6] are what grant.lua takes as ARGV[11] to ARGV[13]
-- ARGV[7] the version that the key's state had when Stripe was asked; it does not matter if the subscription has ended
--
-- Returns 'set', also if the subscription is not the key's present one; 'gone' if the tenant has no such key with a
-- balance of its own; 'moved' if the version is another: then nothing was done.

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'group', 'subscription', 'subscriptionVersion',
	'groupBefore', 'sharesWith')
local version, fields = key[5] or '0', {}
if not isOwn(key) or key[7] then
	return 'gone'
elseif ARGV[6] ~= '1' and ARGV[7] ~= version then
	return 'moved'
end
addState(fields, key[4] or '', version, key[6] or '', key[3] or '', ARGV[3], ARGV[4], ARGV[5], ARGV[6])
call('HSET', KEYS[1], unpack(fields))
return 'set'
