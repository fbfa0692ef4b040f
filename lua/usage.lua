-- Adds what a process has counted to the usage statistics of a tenant on one day.
--
-- KEYS[1] {tenant:<tenantId>:config}:usage:<day>: its field generation is the tenant's, each other one a sum
-- KEYS[2] {tenant:<tenantId>:config}:generation
-- ARGV[1] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[2] the most fields that the hash may have
-- ARGV[3] how many it may have for a field of a model to be added, so that these leave room for others
-- ARGV[4] milliseconds until it expires
-- ARGV[5…] what to add, as addCounts takes it
--
-- Returns 1; or 0 if the tenant was deleted meanwhile: then nothing was added.

if (call('GET', KEYS[2]) or '') ~= ARGV[1] then
	return 0
end
if (call('HGET', KEYS[1], 'generation') or '') ~= ARGV[1] then -- those of a deleted tenant
	call('DEL', KEYS[1])
	call('HSET', KEYS[1], 'generation', ARGV[1])
end
call('PEXPIRE', KEYS[1], ARGV[4]) -- if Redis denies it, nothing is added
addCounts(KEYS[1], call('HLEN', KEYS[1]), 5, #ARGV, tonumber(ARGV[2]), tonumber(ARGV[3]))
call('PEXPIRE', KEYS[1], ARGV[4])
return 1
