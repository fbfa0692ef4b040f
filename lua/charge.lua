#!lua flags=allow-oom
-- Atomically checks and applies one charge to an API key. A refused charge consumes neither tokens nor rate. The script
-- never creates a key, never changes a key's expiry and never takes a balance below 0. It runs even if Redis's memory is
-- full.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate: the times (µs, Redis's clock) of the requests accepted within the window, oldest first.
--         It may be omitted if ARGV[3] is empty and there is no KEYS[3]
-- KEYS[3] {apiKey:<apiKey>}:charge:<Idempotency-Key>, if the charge has one: remembers the outcome for 24 h
-- ARGV[1] tenant ID
-- ARGV[2] tokens to take, a whole number from 0 to 2^53-1; 0 takes nothing, but needs a balance of 1
-- ARGV[3] the rate limits of the tenant's groups, each as \255 group \254 requests, a space, and the window in seconds;
--         the bytes 254 and 255 occur in no UTF-8, so in no group's name
-- ARGV[4] the only group whose limit ARGV[3] has, if it has one; if omitted, ARGV[3] has all
--
-- Returns nil if the tenant has no such key, else three lines, of which the last, the group, may itself have newlines:
-- '<outcome> <tokens left>' and, under a rate limit, ' <requests> <window in s> <requests remaining> <s until a slot
-- frees>'; the user ID; the group. The outcome is
--   charged
--   replayed  KEYS[3] is known; tokens left are those of the first time
--   mismatch  KEYS[3] has charged another amount
--   limited   over the rate
--   spent     fewer tokens are left than requested
--   group     the key's group is not ARGV[4]

local call, pcall = redis.call, redis.pcall

local function failed(result)
	return type(result) == 'table' and result.err
end

-- read returns the entry at an index of the rate log, nil if there is no such entry.
local function read(index)
	local at = call('LINDEX', KEYS[2], index)
	if at and (#at > 16 or not string.find(at, '^%d+$')) then
		error('malformed rate log')
	end
	return at and tonumber(at)
end

-- prune removes the entries that have left the window, which began at start. It returns the oldest that remains. Mostly
-- none or one has left. If many have, the first that has not is found by doubling an index and then bisecting.
local function prune(start)
	local oldest = read(0)
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

local key = call('HMGET', KEYS[1], 'tenantId', 'tokensLeft', 'group', 'userId')
if key[1] ~= ARGV[1] then
	return nil
end
local left, group = key[2] or '', key[3] or ''
local balance, tokens = tonumber(left), tonumber(ARGV[2])
if left ~= '0' and not string.find(left, '^[1-9]%d*$') or balance > 9007199254740991 then
	error('tokensLeft is not a whole number from 0 to 2^53-1')
elseif key[4] and string.find(key[4], '\n', 1, true) then
	error('userId has a newline')
end
local identity = '\n' .. (key[4] or '') .. '\n' .. group
if ARGV[4] and ARGV[4] ~= group then
	return 'group ' .. left .. identity
end

local outcome = 'charged'
if KEYS[3] then
	local before = call('GET', KEYS[3])
	if before and before ~= '' then -- '' is a charge that was undone, see below
		local amount, leftThen = string.match(before, '^(%d+) (%d+)$')
		if not amount or #leftThen > 16 then
			error('malformed record of an Idempotency-Key')
		elseif amount ~= ARGV[2] then
			return 'mismatch ' .. left .. identity
		end
		outcome, left = 'replayed', leftThen
	end
end

-- The rate is a sliding log, whose length after pruning is the number of requests within the window.
local limit, window, used, now, oldest, found, _
if ARGV[3] ~= '' then
	_, found = string.find(ARGV[3], '\255' .. group .. '\254', 1, true)
end
if found then
	limit, window = string.match(ARGV[3], '^(%d+) (%d+)', found + 1)
	limit = tonumber(limit)
	now = call('TIME')
	now = now[1] * 1000000 + now[2]
	oldest = prune(now - window * 1000000)
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
			result = pcall('SET', KEYS[3], ARGV[2] .. ' ' .. left, 'EX', 86400)
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
