#!lua flags=allow-oom
-- Decides over a charge of an API key and carries it out. It never makes a key, never changes a key's expiry and never
-- takes a balance below 0. Whatever it refuses uses nothing up. It runs even when Redis's memory is full.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate, the times (µs, Redis's clock) of the requests accepted within the window, oldest first
-- KEYS[3] {apiKey:<apiKey>}:charge:<Idempotency-Key>, where the charge has one
-- ARGV[1] tenant ID
-- ARGV[2] tokens to take, a whole number from 0 to 2^53-1; 0 only looks, and needs a balance of 1
-- ARGV[3] the rate limits of the tenant's groups, each as \255 group \254 requests, a space, and the window in seconds;
--         the bytes 255 and 254 are in no UTF-8, so in no group's name
-- ARGV[4] for how many seconds the outcome is remembered under KEYS[3]
--
-- Returns nil where the tenant has no such key, or
-- {outcome, tokens left, group, user ID, requests (nil: no limit), window in s, requests remaining, s until a slot frees}
-- outcome: 'charged'; 'replayed', with the tokens left then; 'mismatch', another amount was charged under KEYS[3];
-- 'limited', over the rate; 'spent', fewer tokens are left than asked for.

local key = redis.call('HMGET', KEYS[1], 'tenantId', 'tokensLeft', 'group', 'userId')
if key[1] ~= ARGV[1] then
	return nil
end
if not string.find(key[2] or '', '^%d+$') then
	return redis.error_reply('ERR tokensLeft is no whole number')
end
local left, group, tokens = tonumber(key[2]), key[3] or '', tonumber(ARGV[2])
local outcome = 'charged'

if KEYS[3] then
	local before = redis.call('GET', KEYS[3])
	if before then
		local amount, leftThen = string.match(before, '^(%d+) (%d+)$')
		if amount ~= ARGV[2] then
			return {'mismatch', left, group, key[4]}
		end
		outcome, left = 'replayed', tonumber(leftThen)
	end
end

-- The rate: a sliding log, pruned of what has left the window, so that its length is the number of requests within.
local limit, window, used, now
local function time(index)
	return tonumber(redis.call('LINDEX', KEYS[2], index) or nil)
end
local _, found = string.find(ARGV[3], '\255' .. group .. '\254', 1, true)
if found then
	limit, window = string.match(ARGV[3], '^(%d+) (%d+)', found + 1)
	limit = tonumber(limit)
	now = redis.call('TIME')
	now = now[1] * 1000000 + now[2]
	local start = now - window * 1000000
	local function gone(index)
		local at = time(index)
		return at and at <= start
	end
	if gone(0) then
		-- Mostly one has gone. Where many have, find the first that has not by doubling, then halving the distance.
		local last, first = 0, 1
		while gone(first) do
			last, first = first, first * 2
		end
		while first - last > 1 do
			local middle = math.floor((last + first) / 2)
			if gone(middle) then
				last = middle
			else
				first = middle
			end
		end
		redis.call('LTRIM', KEYS[2], first, -1)
	end
	used = redis.call('LLEN', KEYS[2])
	if outcome == 'charged' and used >= limit then
		outcome = 'limited'
		if used > 0 then -- the window may have become longer than it was when these were accepted
			redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', math.ceil(time(-1) / 1000) + window * 1000), 'GT')
		end
	end
end

if outcome == 'charged' then
	if left < math.max(tokens, 1) then
		outcome = 'spent'
	else
		if tokens > 0 then
			left = redis.call('HINCRBY', KEYS[1], 'tokensLeft', '-' .. ARGV[2])
		end
		if limit then
			redis.call('RPUSH', KEYS[2], string.format('%.0f', now))
			redis.call('PEXPIRE', KEYS[2], window .. '000')
			used = used + 1
		end
		if KEYS[3] then
			redis.call('SET', KEYS[3], ARGV[2] .. ' ' .. string.format('%.0f', left), 'EX', ARGV[4])
		end
	end
end

if not limit then
	return {outcome, left, group, key[4]}
end
-- A slot frees when the oldest leaves; with more in the window than a lowered limit allows, when all but limit-1 have left.
local wait = 0
if limit == 0 then
	wait = tonumber(window)
elseif used > 0 then
	wait = math.ceil((time(math.max(used - limit, 0)) + window * 1000000 - now) / 1000000)
end
return {outcome, left, group, key[4], limit, tonumber(window), math.max(limit - used, 0), wait}
