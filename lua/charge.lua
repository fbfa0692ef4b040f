-- Atomically checks and applies one charge to an API key. A refused charge consumes neither tokens nor rate. The script
-- never creates a key, never changes a key's expiry and never takes a balance below 0.
--
-- The Go code puts a first line before this file, with flags for Redis, and sets grow. With grow = false the script runs
-- even if Redis's memory is full, and refuses what would need more of it.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate: the times (µs, Redis's clock) of the requests accepted within the window, oldest first.
--         It may be omitted if no group has a rate limit and there is no KEYS[3]
-- KEYS[3] {apiKey:<apiKey>}:charge:<digest of the Idempotency-Key>, if the charge has one: remembers the outcome
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] tokens to take, a whole number from 0 to 2^53-1; 0 takes nothing, but needs a balance of 1
-- ARGV[4] the tenant's groups, each as \255 name \254 and, if it has a rate limit, the requests, a space, and the window in
--         seconds; the bytes 254 and 255 occur in no UTF-8, so in no group's name
-- ARGV[5] the only group that ARGV[4] has; '' or omitted if it has all
-- ARGV[6] seconds for which KEYS[3] is remembered; omitted without KEYS[3]
--
-- Returns nil if the tenant has no such key, else three lines, of which the last, the group, may itself have newlines:
-- '<outcome> <tokens left>' and, under a rate limit, ' <requests> <window in s> <requests remaining> <s until a slot
-- frees>'; the user ID; the group. The outcome is
--   charged
--   replayed  KEYS[3] is known; tokens left are those of the first time
--   mismatch  KEYS[3] has charged another amount
--   limited   over the rate
--   spent     fewer tokens are left than requested
--   group     the key's group is not ARGV[5]
--   disabled  the tenant does not have the key's group
--   full      it would need memory, and grow is false

local call, pcall = redis.call, redis.pcall

local function failed(result)
	return type(result) == 'table' and result.err
end

local function number(entry)
	if #entry > 16 or not string.find(entry, '^%d+$') then
		error('malformed rate log')
	end
	return tonumber(entry)
end

-- read returns the entry at an index of the rate log, nil if there is none.
local function read(index)
	local entry = call('LINDEX', KEYS[2], index)
	return entry and number(entry)
end

-- clamp sets the entries that are later than now to now. They were written by a server whose clock is ahead of that of
-- its successor.
local function clamp(now, window)
	local entries = call('LRANGE', KEYS[2], 0, -1)
	for i, entry in ipairs(entries) do
		entries[i] = math.min(number(entry), now)
	end
	table.sort(entries)
	call('DEL', KEYS[2])
	for first = 1, #entries, 1000 do -- Lua's stack bounds the arguments of a call
		local last = math.min(first + 999, #entries)
		for i = first, last do
			entries[i] = string.format('%.0f', entries[i])
		end
		call('RPUSH', KEYS[2], unpack(entries, first, last))
	end
	call('PEXPIRE', KEYS[2], window .. '000')
end

-- prune removes the entries that have left the window. It returns the oldest that remains. Mostly none or one has left.
-- If many have, the first that has not is found by doubling an index and then bisecting.
local function prune(now, window)
	local start = now - window * 1000000
	local oldest = read(0)
	if oldest and math.max(oldest, read(-1)) > now then
		clamp(now, window)
		oldest = read(0)
	end
	if not oldest or oldest > start then
		return oldest
	end
	local left, first = 0, 1
	oldest = read(first)
	while oldest and oldest <= start do
		left, first = first, first * 2
		oldest = read(first)
	end
	while first - left > 1 do
		local middle = math.floor((left + first) / 2)
		local at = read(middle)
		if at and at <= start then
			left = middle
		else
			first, oldest = middle, at
		end
	end
	call('LTRIM', KEYS[2], first, -1)
	return oldest
end

local key = call('HMGET', KEYS[1], 'tenantId', 'tokensLeft', 'group', 'userId', 'generation')
if key[1] ~= ARGV[1] or (key[5] or '') ~= ARGV[2] then
	return nil
end
local left, group = key[2] or '', key[3] or ''
local balance, tokens = tonumber(left), tonumber(ARGV[3])
if left ~= '0' and not string.find(left, '^[1-9]%d*$') or balance > 9007199254740991 then
	error('tokensLeft is not a whole number from 0 to 2^53-1')
elseif key[4] and string.find(key[4], '\n', 1, true) then
	error('userId has a newline')
end
-- No config has a group of more than 64 bytes: what was written straight to Redis is not sent to and fro.
local identity = '\n' .. (key[4] or '') .. '\n' .. string.sub(group, 1, 64)
if ARGV[5] and ARGV[5] ~= '' and ARGV[5] ~= group and #group <= 64 then
	return 'group ' .. left .. identity
end

local outcome = 'charged'
if KEYS[3] then
	local before = call('GET', KEYS[3])
	if before and before ~= '' then -- '' is a charge that was undone, see below
		local amount, leftThen = string.match(before, '^(%d+) (%d+)$')
		if not amount or #leftThen > 16 then
			error('malformed record of an Idempotency-Key')
		elseif amount ~= ARGV[3] then
			return 'mismatch ' .. left .. identity
		end
		outcome, left = 'replayed', leftThen
	end
end

local _, found = string.find(ARGV[4], '\255' .. group .. '\254', 1, true)
if not found then
	return (outcome == 'replayed' and outcome or 'disabled') .. ' ' .. left .. identity
end
-- The rate is a sliding log, whose length after pruning is the number of requests within the window.
local limit, window = string.match(ARGV[4], '^(%d+) (%d+)', found + 1)
local used, now, oldest
if not grow and (limit or KEYS[3]) then
	return 'full ' .. left .. identity
end
if limit then
	limit = tonumber(limit)
	now = call('TIME')
	now = now[1] * 1000000 + now[2]
	oldest = prune(now, window)
	used = oldest and call('LLEN', KEYS[2]) or 0
	if outcome == 'charged' and used >= limit then
		outcome = 'limited'
		if used > 0 then -- the window may be longer than it was when these were accepted
			call('PEXPIREAT', KEYS[2], string.format('%.0f', math.ceil(read(-1) / 1000) + window * 1000))
		end
	end
end

if outcome == 'charged' then
	if balance < tokens or balance < 1 then
		outcome = 'spent'
	else
		-- The balance changes last. If Redis denies one of these commands, those before it are undone.
		left = string.format('%.0f', balance - tokens)
		local result
		if limit then
			used = call('RPUSH', KEYS[2], string.format('%.0f', now))
			result = pcall('PEXPIRE', KEYS[2], window .. '000')
			oldest = oldest or now
		end
		if KEYS[3] and not failed(result) then
			result = pcall('SET', KEYS[3], ARGV[3] .. ' ' .. left, 'EX', ARGV[6])
		end
		if tokens > 0 and not failed(result) then
			result = pcall('HINCRBY', KEYS[1], 'tokensLeft', -tokens)
			if KEYS[3] and failed(result) and failed(pcall('DEL', KEYS[3])) then
				call('SET', KEYS[3], '', 'PX', 1)
			end
		end
		if failed(result) then
			if limit then
				pcall('LTRIM', KEYS[2], 0, -2)
			end
			return result
		end
	end
end

if not limit then
	return outcome .. ' ' .. left .. identity
end
-- A slot frees when the oldest entry leaves the window. If the limit was lowered, limit-1 entries must remain.
local wait = 0
if limit == 0 then
	wait = window
elseif used > 0 then
	if used > limit then
		oldest = read(used - limit)
	end
	wait = math.ceil((oldest + window * 1000000 - now) / 1000000)
end
return string.format('%s %s %d %s %d %.0f%s', outcome, left, limit, window, math.max(limit - used, 0), wait, identity)
