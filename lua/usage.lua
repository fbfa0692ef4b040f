-- Adds what a process has counted to the usage statistics of a tenant on one day.
--
-- KEYS[1] {tenant:<tenantId>:config}:usage:<day>: its field generation is the tenant's, each other one a sum
-- KEYS[2] {tenant:<tenantId>:config}:generation
-- ARGV[1] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[2] the most fields that the hash may have
-- ARGV[3] how many it may have for a field of a model to be added, so that these leave room for others
-- ARGV[4] milliseconds until it expires
-- ARGV[5…] groups of three: a field; the field that takes its place if the hash has too many; and the number to add
--
-- Returns 1; or 0 if the tenant was deleted meanwhile: then nothing was added.

if (call('GET', KEYS[2]) or '') ~= ARGV[1] then
	return 0
end
if (call('HGET', KEYS[1], 'generation') or '') ~= ARGV[1] then -- those of a deleted tenant
	call('DEL', KEYS[1])
	call('HSET', KEYS[1], 'generation', ARGV[1])
end
for i = 5, #ARGV, 3 do
	local field = ARGV[i]
	local before = call('HGET', KEYS[1], field)
	local most = tonumber(ARGV[field:sub(1, 6) == 'model ' and 3 or 2])
	if not before and call('HLEN', KEYS[1]) >= most then
		field = ARGV[i + 1]
		before = call('HGET', KEYS[1], field)
	end
	local sum = math.min((tonumber(before or '') or 0) + tonumber(ARGV[i + 2]), maxAmount)
	call('HSET', KEYS[1], field, string.format('%.0f', sum))
end
call('PEXPIRE', KEYS[1], ARGV[4])
return 1
