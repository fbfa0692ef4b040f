-- Checks and applies one charge to an API key. A refused charge takes neither tokens nor rate. A charge never creates a
-- key, never changes its expiry and never takes its balance below 0. Without rate.lua, what needs memory is refused.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate, see rate.lua; omitted if no group has a rate limit and there is no KEYS[3]
-- KEYS[3] {apiKey:<first>}:charge:<digest of the Idempotency-Key>, which remembers the outcome; omitted without one
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] tokens to take, a whole number from 0 to 2^53-1, or with '+' after it: these or, if fewer are left, those; 0
--         takes nothing, but needs a balance of 1; 'free' takes nothing from any balance
-- ARGV[4] groups of the tenant, each as \255 name \254 and, if it has a rate limit, the requests, a space, and the
--         window in seconds, if it has a refill, \253, its tokens, a space, and the period in seconds, 'day' or 'month',
--         and, if it bounds the gateway's open holds, \252 and their number; the bytes 252 to 255 occur in no UTF-8, so
--         in no group's name
-- ARGV[5] seconds for which KEYS[3] is remembered, and ARGV[6] the name that the key had first, as far as the caller
--         knows; omitted or '' without KEYS[3]
-- ARGV[7] those of the groups that are denied what the charge is for, each as \255 name \254; omitted if none is
--
-- Returns nil if the tenant has no such key, else three lines, of which the last, the group, may itself have newlines:
-- '<outcome> <tokens charged> <tokens left>' and, under a rate limit, ' <requests> <window in s> <requests remaining>
-- <s until a slot frees>'; the user ID; the group. The outcome is
--   charged
--   replayed  KEYS[3] is known; the tokens are those of the first time
--   mismatch  KEYS[3] has charged another amount
--   first     the key had another name first than ARGV[6], which takes the place of the user ID: KEYS[3] is wrong
--   limited   over the rate
--   spent     fewer tokens are left than requested; those charged are what the gateway holds
--   due       nothing was decided: a hold has expired whose tokens must be returned first
--   off       an admin has disabled the key
--   disabled  ARGV[4] does not have the key's group
--   denied    ARGV[7] has it
--   full      it would need memory, and Redis has none

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'group', 'userId', 'enabled', 'first')
if not isOwn(key) then
	return nil
end
local left, group, user = key[3], key[4] or '', key[5] or ''
local balance = readBalance(left)
if string.find(user, '\n', 1, true) then
	error({err = 'MALFORMED userId has a newline'})
end
-- No config has a group of more than 64 bytes: what was written straight to Redis is not sent to and fro.
local identity = '\n' .. user .. '\n' .. (#group > 64 and string.sub(group, 1, 64) or group)
local outcome, charged = 'charged', ARGV[3]
if KEYS[3] then
	if key[7] and key[7] ~= ARGV[6] then
		return 'first 0 ' .. left .. '\n' .. key[7] .. '\n'
	end
	local before = call('GET', KEYS[3])
	if before and before ~= '' then -- '' is a charge that was undone, see below
		local amount, chargedThen, leftThen = string.match(before, '^(%d+%+?) (%d+) (%d+)$')
		if not amount or #chargedThen > 16 or #leftThen > 16 then
			error({err = 'MALFORMED the record of an Idempotency-Key'})
		elseif amount ~= ARGV[3] then
			return 'mismatch 0 ' .. left .. identity
		end
		outcome, charged, left = 'replayed', chargedThen, leftThen
	end
end
if (sharer and sharer.off or key[6]) == '0' and outcome == 'charged' then
	return 'off 0 ' .. left .. identity
end

local _, found = string.find(ARGV[4], '\255' .. group .. '\254', 1, true)
local tokens = tonumber(ARGV[3])
if found and ARGV[7] and string.find(ARGV[7], '\255' .. group .. '\254', 1, true) then
	return 'denied 0 ' .. left .. identity
end
if outcome == 'charged' then
	if found and refillBalance then
		balance = refillBalance(balance, ARGV[4], found + 1)
		if not balance then
			return 'due 0 ' .. left .. identity
		end
		left = string.format('%.0f', balance)
	end
	if ARGV[3] == 'free' then
		tokens, charged = 0, '0'
	elseif not tokens then -- up to
		tokens = math.min(tonumber(string.sub(ARGV[3], 1, -2)), math.max(balance, 1))
		charged = string.format('%.0f', tokens)
	end
end

if not found then
	return (outcome == 'replayed' and outcome or 'disabled') .. ' ' .. charged .. ' ' .. left .. identity
end
local limit, window
if KEYS[2] then
	limit, window = string.match(ARGV[4], '^(%d+) (%d+)', found + 1)
end
if (limit or KEYS[3]) and not measureRate then
	return 'full 0 ' .. left .. identity
end
local remaining, oldest, start, entry -- see measureRate
if limit then
	remaining, oldest, start, entry = measureRate(limit, window)
	if remaining <= 0 and outcome == 'charged' then
		outcome = 'limited'
	end
end

if outcome == 'charged' and (balance < tokens or balance < 1) and ARGV[3] ~= 'free' then
	outcome = 'spent'
	local holds = call('HMGET', KEYS[1], 'holdsDue', 'tokensHeld', 'leases')
	if holds[1] and (tonumber(holds[1]) or 0) <= milliseconds() then
		outcome = 'due'
	end
	local leased, sum = string.match(holds[3] or '', '^%d+ (%d+) (%d+)$') -- see holds.lua
	charged = holds[1] and sum == holds[2] and leased or '0'
elseif outcome == 'charged' then
	-- The balance changes last. If Redis denies one of these commands, those before it are undone.
	-- %d is cheaper than %.0f, by 3 % of a charge, but ends at 2^31 where a long has 32 bits.
	left = string.format(balance < 2147483648 and '%d' or '%.0f', balance - tokens)
	local denied
	if limit then
		denied = acceptRequest(entry, window)
		if denied then
			return denied
		end
		remaining, oldest = remaining - 1, oldest or entry
	end
	if KEYS[3] then
		denied = errorOf(pcall('SET', KEYS[3], ARGV[3] .. ' ' .. charged .. ' ' .. left, 'EX', ARGV[5]))
	end
	if tokens > 0 and not denied then
		denied = errorOf(pcall('HINCRBY', KEYS[1], 'tokensLeft', '-' .. charged))
		if denied and KEYS[3] and errorOf(pcall('DEL', KEYS[3])) then
			call('SET', KEYS[3], '', 'PX', 1)
		end
	end
	if denied then
		if limit then
			pcall('LTRIM', KEYS[2], '0', '-2')
		end
		return denied
	end
end
local rate = limit and describeRate(limit, window, remaining, oldest, start) or ''
return outcome .. ' ' .. charged .. ' ' .. left .. rate .. identity
