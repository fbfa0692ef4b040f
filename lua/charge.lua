#!lua flags=allow-oom
-- Decides over a charge of an API key and carries it out. It never makes a key, never changes a key's expiry and never
-- takes a balance below 0. Whatever it refuses uses nothing up. It runs even when Redis's memory is full.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate, the times (µs, Redis's clock) of the requests accepted within the window, oldest first;
--         may be missing where ARGV[3] is empty and there is no KEYS[3]
-- KEYS[3] {apiKey:<apiKey>}:charge:<Idempotency-Key>, where the charge has one: its outcome is remembered there for 24 h
-- ARGV[1] tenant ID
-- ARGV[2] tokens to take, a whole number from 0 to 2^53-1; 0 only looks, and needs a balance of 1
-- ARGV[3] the rate limits of the tenant's groups, each as \255 group \254 requests, a space, and the window in seconds;
--         the bytes 255 and 254 are in no UTF-8, so in no group's name
-- ARGV[4] the only group whose limit ARGV[3] has, if it has one; where it is missing ARGV[3] has all
--
-- Returns nil where the tenant has no such key, or a string of three lines, whose last, the group, may itself have
-- newlines: '<outcome> <tokens left>', under a rate limit with ' <requests> <window in s> <requests remaining>
-- <s until a slot frees>'; the user ID; the group. The outcome is
-- 'charged'; 'replayed', with the tokens left then; 'mismatch', another amount was charged under KEYS[3];
-- 'limited', over the rate; 'spent', fewer tokens are left than asked for; 'group', the key's is not ARGV[4].

local call = redis.call
local function denied(result)
	return type(result) == 'table' and result.err
end

local key = call('HMGET', KEYS[1], 'tenantId', 'tokensLeft', 'group', 'userId')
if key[1] ~= ARGV[1] then
	return nil
end
local left, group = key[2] or '', key[3] or ''
local balance, tokens = tonumber(left), tonumber(ARGV[2])
if left ~= '0' and not string.find(left, '^[1-9]%d*$') or balance > 9007199254740991 then
	error('tokensLeft is no whole number from 0 to 2^53-1')
elseif key[4] and string.find(key[4], '\n', 1, true) then
	error('userId has a newline')
end
local who = '\n' .. (key[4] or '') .. '\n' .. group
if ARGV[4] and ARGV[4] ~= group then
	return 'group ' .. left .. who
end

local outcome = 'charged'
if KEYS[3] then
	local before = call('GET', KEYS[3])
	if before and before ~= '' then -- '' is one that was taken back, see below
		local amount, leftThen = string.match(before, '^(%d+) (%d+)$')
		if not amount or #leftThen > 16 then
			error('junk under an Idempotency-Key')
		elseif amount ~= ARGV[2] then
			return 'mismatch ' .. left .. who
		end
		outcome, left = 'replayed', leftThen
	end
end

-- The rate: a sliding log, pruned of what has left the window, so that its length is the number of requests within.
local limit, window, used, now, oldest, time, found, _
if ARGV[3] ~= '' then
	_, found = string.find(ARGV[3], '\255' .. group .. '\254', 1, true)
end
if found then
	time = function(index)
		local at = call('LINDEX', KEYS[2], index)
		if at and (#at > 16 or not string.find(at, '^%d+$')) then
			error('junk in the log of a rate limit')
		end
		return at and tonumber(at)
	end
	limit, window = string.match(ARGV[3], '^(%d+) (%d+)', found + 1)
	limit = tonumber(limit)
	now = call('TIME')
	now = now[1] * 1000000 + now[2]
	local start = now - window * 1000000
	oldest = time(0)
	if oldest and oldest <= start then
		-- Mostly one has gone. Where many have, find the first that has not by doubling, then halving the distance.
		local last, first = 0, 1
		oldest = time(first)
		while oldest and oldest <= start do
			last, first = first, first * 2
			oldest = time(first)
		end
		while first - last > 1 do
			local middle = math.floor((last + first) / 2)
			local at = time(middle)
			if at and at <= start then
				last = middle
			else
				first, oldest = middle, at
			end
		end
		call('LTRIM', KEYS[2], first, -1)
	end
	used = oldest and call('LLEN', KEYS[2]) or 0
	if outcome == 'charged' and used >= limit then
		outcome = 'limited'
		if used > 0 then -- the window may have become longer than it was when these were accepted
			call('PEXPIREAT', KEYS[2], string.format('%.0f', math.ceil(time(-1) / 1000) + window * 1000))
		end
	end
end

if outcome == 'charged' then
	if balance < tokens or balance < 1 then
		outcome = 'spent'
	else
		-- The balance comes last, and where Redis denies one of these commands all is as before.
		left = string.format('%.0f', balance - tokens)
		local result
		if limit then
			used = call('RPUSH', KEYS[2], string.format('%.0f', now))
			result = redis.pcall('PEXPIRE', KEYS[2], window .. '000')
			oldest = oldest or now
		end
		if KEYS[3] and not denied(result) then
			result = redis.pcall('SET', KEYS[3], ARGV[2] .. ' ' .. left, 'EX', 86400)
		end
		if tokens > 0 and not denied(result) then
			result = redis.pcall('HINCRBY', KEYS[1], 'tokensLeft', -tokens)
			if KEYS[3] and denied(result) and denied(redis.pcall('DEL', KEYS[3])) then
				call('SET', KEYS[3], '', 'PX', 1)
			end
		end
		if denied(result) then
			if limit then
				redis.pcall('LTRIM', KEYS[2], 0, -2)
			end
			return result
		end
	end
end

if not limit then
	return outcome .. ' ' .. left .. who
end
-- A slot frees when the oldest leaves; with more in the window than a lowered limit allows, when all but limit-1 have left.
local wait = 0
if limit == 0 then
	wait = window
elseif used > 0 then
	if used > limit then
		oldest = time(used - limit)
	end
	wait = math.ceil((oldest + window * 1000000 - now) / 1000000)
end
return string.format('%s %s %d %s %d %.0f%s', outcome, left, limit, window, math.max(limit - used, 0), wait, who)
