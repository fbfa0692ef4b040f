-- Adds what a process has counted to the usage statistics of API keys. What somebody else has written in the place of
-- what belongs to a key concerns that key alone: it counts as gone.
--
-- KEYS has four keys for each API key
--   [1] apiKey:<apiKey>
--   [2] {apiKey:<apiKey>}:first, see rotate.lua
--   [3] {apiKey:<first>}:usage:<day>: each field is a sum; that of a temp_ key expires with it
--   [4] {apiKey:<first>}:current, see rotate.lua
-- ARGV[1] when a hash expires, unless it is that of a temp_ key (Unix time in ms)
-- ARGV[2] how many fields it may have for a field of a model to be added
-- ARGV[3…] for each API key: the name that it had first, as far as the caller knows; a number n; and n arguments that
--         say what to add, as addCounts takes it
--
-- Returns for each API key {its user ID, '' if it is anonymous}. Or nothing was added for that key, and it is {name,
-- first name} if these are the names of the key, or {} if the key is gone.

-- read returns what a command returns, nil if what it reads is of another type.
local function read(command, name, ...)
	local reply = pcall(command, name, ...)
	local refused = errorOf(reply)
	if refused and string.sub(refused.err, 1, 10) ~= 'WRONGTYPE ' then
		error(refused)
	end
	return not refused and reply or nil
end

local next, replies = 3, {}
for i = 1, #KEYS, 4 do
	local given, from = ARGV[next], next + 2
	next = from + ARGV[next + 1]
	local name = string.sub(KEYS[i], 8)
	local key = read('HMGET', KEYS[i], 'tenantId', 'userId', 'first') or {}
	local first = key[1] and (key[3] or name) or read('GET', KEYS[i + 1]) or name
	local length, reply = nil, {}
	if first ~= given then
		reply = {name, first}
	elseif not key[1] then -- it may have been rotated
		local current = read('GET', KEYS[i + 3])
		if current and current ~= name then
			reply = {current, first}
		end
	else
		length = read('HLEN', KEYS[i + 2])
	end
	if length then
		local expires = string.sub(name, 1, 5) == 'temp_' and call('PEXPIRETIME', KEYS[i]) or 0
		local at = expires > 0 and expires or ARGV[1]
		call('PEXPIREAT', KEYS[i + 2], at) -- if Redis denies it, nothing is added
		addCounts(KEYS[i + 2], length, from, next - 1, maxAmount, tonumber(ARGV[2]))
		if length == 0 then
			call('PEXPIREAT', KEYS[i + 2], at)
		end
		reply = {key[2] or ''}
	end
	replies[#replies + 1] = reply
end
return replies
