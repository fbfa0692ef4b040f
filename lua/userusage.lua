-- Adds what users of a tenant have used to what they have used on one day. Those who were charged most are kept.
--
-- KEYS[1] {tenant:<tenantId>:config}:usage:<day>:users: user ID, '' for all who are anonymous, by the tokens charged
-- KEYS[2] {tenant:<tenantId>:config}:usage:<day>:users:sums: 'user <user ID>' → '<requests> <tokens charged>'; the same
--         sums of all of them together, requests and charged; and the tenant's generation
-- KEYS[3] {tenant:<tenantId>:config}:generation
-- ARGV[1] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[2] how many users are kept
-- ARGV[3] milliseconds until KEYS[1] and KEYS[2] expire
-- ARGV[4…] at most 200 groups of three: a user ID, which is not there twice, requests, and tokens charged
--
-- Returns 1; or 0 if the tenant was deleted meanwhile: then nothing was added.

if (call('GET', KEYS[3]) or '') ~= ARGV[1] then
	return 0
end
if (call('HGET', KEYS[2], 'generation') or '') ~= ARGV[1] then -- those of a deleted tenant
	call('DEL', KEYS[1], KEYS[2])
	call('HSET', KEYS[2], 'generation', ARGV[1])
end

-- sumsOf returns the two numbers of a field, 0 if it is absent.
local function sumsOf(text)
	local requests, charged = string.match(text or '', '^(%d+) (%d+)$')
	return tonumber(requests or 0), tonumber(charged or 0)
end

local names = {'requests', 'charged'}
for i = 4, #ARGV, 3 do
	names[#names + 1] = 'user ' .. ARGV[i]
end
local before = call('HMGET', KEYS[2], unpack(names))
local allRequests, allCharged = tonumber(before[1] or '') or 0, tonumber(before[2] or '') or 0
local fields, scores = {}, {}
for i = 3, #names do
	local arg = 3 * i - 5
	local requests, charged = sumsOf(before[i])
	requests, charged = math.min(requests + ARGV[arg + 1], maxAmount), math.min(charged + ARGV[arg + 2], maxAmount)
	allRequests, allCharged = allRequests + ARGV[arg + 1], allCharged + ARGV[arg + 2]
	fields[#fields + 1] = names[i]
	fields[#fields + 1] = string.format('%.0f %.0f', requests, charged)
	scores[#scores + 1] = string.format('%.0f', charged)
	scores[#scores + 1] = ARGV[arg]
end
call('PEXPIRE', KEYS[2], ARGV[3]) -- if Redis denies it, nothing is added
call('ZADD', KEYS[1], unpack(scores))
call('HSET', KEYS[2], unpack(fields))
local over = math.min(call('ZCARD', KEYS[1]) - ARGV[2], 1000)
if over > 0 then
	local least = call('ZRANGE', KEYS[1], 0, over - 1)
	names = {}
	for i, user in ipairs(least) do
		names[i] = 'user ' .. user
	end
	for _, text in ipairs(call('HMGET', KEYS[2], unpack(names))) do
		local requests, charged = sumsOf(text)
		allRequests, allCharged = allRequests - requests, allCharged - charged
	end
	call('ZREM', KEYS[1], unpack(least))
	call('HDEL', KEYS[2], unpack(names))
end
local function bounded(sum)
	return string.format('%.0f', math.min(math.max(sum, 0), maxAmount))
end
call('HSET', KEYS[2], 'requests', bounded(allRequests), 'charged', bounded(allCharged))
call('PEXPIRE', KEYS[1], ARGV[3])
call('PEXPIRE', KEYS[2], ARGV[3])
return 1
