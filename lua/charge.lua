-- Atomically checks and applies one charge to an API key. A refused charge consumes neither tokens nor rate. The script
-- never creates a key, never changes a key's expiry and never takes a balance below 0.
--
-- The Go code puts a first line with flags for Redis before this file and rate.lua or, if the script must run in a Redis
-- whose memory is full, a measureRate that is nil. Then it refuses what needs memory. Before that it puts refill.lua or, if
-- no group of the tenant has a refill, a refillBalance that is nil.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate, see rate.lua; omitted if no group has a rate limit and there is no KEYS[3]
-- KEYS[3] {apiKey:<apiKey>}:charge:<digest of the Idempotency-Key>, if the charge has one: remembers the outcome
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] tokens to take, a whole number from 0 to 2^53-1, or with '+' after it: these or, if fewer are left, those; 0
--         takes nothing, but needs a balance of 1
-- ARGV[4] the tenant's groups, each as \255 name \254 and, if it has a rate limit, the requests, a space, and the window in
--         seconds, and, if it has a refill, \253, its tokens, a space, and the period in seconds; the bytes 253, 254 and 255
--         occur in no UTF-8, so in no group's name
-- ARGV[5] the only group that ARGV[4] has; '' or omitted if it has all
-- ARGV[6] seconds for which KEYS[3] is remembered; omitted without KEYS[3]
--
-- Returns nil if the tenant has no such key, else three lines, of which the last, the group, may itself have newlines:
-- '<outcome> <tokens charged> <tokens left>' and, under a rate limit, ' <requests> <window in s> <requests remaining>
-- <s until a slot frees>'; the user ID; the group. The outcome is
--   charged
--   replayed  KEYS[3] is known; the tokens are those of the first time
--   mismatch  KEYS[3] has charged another amount
--   limited   over the rate
--   spent     fewer tokens are left than requested
--   due       the same, but a hold has expired whose tokens must be returned first
--   off       an admin has disabled the key
--   group     the key's group is not ARGV[5]
--   disabled  the tenant does not have the key's group
--   full      it would need memory, and Redis has none

local call, pcall = redis.call, redis.pcall

local function failed(result)
	return type(result) == 'table' and result.err
end

local key = call('HMGET', KEYS[1], 'tenantId', 'tokensLeft', 'group', 'userId', 'generation', 'enabled')
if key[1] ~= ARGV[1] or (key[5] or '') ~= ARGV[2] then
	return nil
end
local left, group = key[2] or '', key[3] or ''
local balance = tonumber(left)
if left ~= '0' and not string.find(left, '^[1-9]%d*$') or balance > 9007199254740991 then
	error('tokensLeft is not a whole number from 0 to 2^53-1')
elseif key[4] and string.find(key[4], '\n', 1, true) then
	error('userId has a newline')
end
-- No config has a group of more than 64 bytes: what was written straight to Redis is not sent to and fro.
local identity = '\n' .. (key[4] or '') .. '\n' .. string.sub(group, 1, 64)
if key[6] == '0' then
	return 'off 0 ' .. left .. identity
elseif ARGV[5] and ARGV[5] ~= '' and ARGV[5] ~= group and #group <= 64 then
	return 'group 0 ' .. left .. identity
end

local _, found = string.find(ARGV[4], '\255' .. group .. '\254', 1, true)
if found and refillBalance then
	balance = refillBalance(balance, ARGV[4], found + 1)
	left = string.format('%.0f', balance)
end

local tokens, charged = tonumber(ARGV[3]), ARGV[3]
if not tokens then -- up to
	tokens = math.min(tonumber(string.sub(ARGV[3], 1, -2)), math.max(balance, 1))
	charged = string.format('%.0f', tokens)
end

local outcome = 'charged'
if KEYS[3] then
	local before = call('GET', KEYS[3])
	if before and before ~= '' then -- '' is a charge that was undone, see below
		local amount, chargedThen, leftThen = string.match(before, '^(%d+%+?) (%d+) (%d+)$')
		if not amount or #chargedThen > 16 or #leftThen > 16 then
			error('malformed record of an Idempotency-Key')
		elseif amount ~= ARGV[3] then
			return 'mismatch 0 ' .. left .. identity
		end
		outcome, charged, left = 'replayed', chargedThen, leftThen
	end
end

if not found then
	return (outcome == 'replayed' and outcome or 'disabled') .. ' ' .. charged .. ' ' .. left .. identity
end
local limit, window = string.match(ARGV[4], '^(%d+) (%d+)', found + 1)
if (limit or KEYS[3]) and not measureRate then
	return 'full 0 ' .. left .. identity
end
local rate = limit and measureRate(limit, window)
if rate and outcome == 'charged' and isOverRate(rate) then
	outcome = 'limited'
end

if outcome == 'charged' and (balance < tokens or balance < 1) then
	outcome = 'spent'
	local due = call('HGET', KEYS[1], 'holdsDue')
	if due then
		local time = call('TIME')
		if tonumber(due) <= time[1] * 1000 + time[2] / 1000 then
			outcome = 'due'
		end
	end
elseif outcome == 'charged' then
	-- The balance changes last. If Redis denies one of these commands, those before it are undone.
	left = string.format('%.0f', balance - tokens)
	local result = rate and acceptRequest(rate)
	if result then
		return result
	end
	if KEYS[3] then
		result = pcall('SET', KEYS[3], ARGV[3] .. ' ' .. charged .. ' ' .. left, 'EX', ARGV[6])
	end
	if tokens > 0 and not failed(result) then
		result = pcall('HINCRBY', KEYS[1], 'tokensLeft', '-' .. charged)
		if KEYS[3] and failed(result) and failed(pcall('DEL', KEYS[3])) then
			call('SET', KEYS[3], '', 'PX', 1)
		end
	end
	if failed(result) then
		if rate then
			forgetRequest()
		end
		return result
	end
end
return outcome .. ' ' .. charged .. ' ' .. left .. (rate and describeRate(rate) or '') .. identity
