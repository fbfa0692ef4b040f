-- Reads which users of a tenant were charged most on one day.
--
-- KEYS[1…3] as userusage.lua takes them; KEYS[3] is not used
-- ARGV[1]   the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[2]   the most users to return, 1 to 1,000
--
-- Returns {requests, tokens charged} of all users together that are kept, followed by user ID, requests and tokens
-- charged of each of those who were charged most, most first.

if (call('HGET', KEYS[2], 'generation') or '') ~= ARGV[1] then
	return {'0', '0'}
end
local all = call('HMGET', KEYS[2], 'requests', 'charged')
local reply = {all[1] or '0', all[2] or '0'}
local users = call('ZRANGE', KEYS[1], 0, ARGV[2] - 1, 'REV')
local names = {}
for i, user in ipairs(users) do
	names[i] = 'user ' .. user
end
for i, sums in ipairs(#names > 0 and call('HMGET', KEYS[2], unpack(names)) or {}) do
	local requests, charged = string.match(sums or '', '^(%d+) (%d+)$')
	reply[#reply + 1] = users[i]
	reply[#reply + 1] = requests or '0'
	reply[#reply + 1] = charged or '0'
end
return reply
