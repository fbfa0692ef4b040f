-- Takes tokens out of an API key's balance and holds them until they are settled or a deadline passes. A refused hold
-- takes neither tokens nor rate.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate, see rate.lua
-- KEYS[3] {apiKey:<apiKey>}:holds, see holds.lua
-- KEYS[4] {apiKey:<apiKey>}:hold:<digest of the Idempotency-Key>, which remembers the outcome for a day; omitted
--         without one
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3] the most tokens to hold, a whole number from 1 to 2^53-1
-- ARGV[4] the fewest: if the balance is between the two, all of it is held
-- ARGV[5] hold ID
-- ARGV[6] time to live of the hold in milliseconds
-- ARGV[7] groups of the tenant, as charge.lua takes them
-- ARGV[8] digest of the request; omitted without KEYS[4]
--
-- Returns nil if the tenant has no such key, else four lines: '<outcome> <tokens held> <tokens left> <deadline in Unix
-- ms>' and the state of a rate limit, if there is one, as charge.lua returns it; the hold ID; the user ID; the group.
-- The outcome is
--   held
--   replayed  KEYS[4] is known; the rest is that of the first time, without the rate limit
--   mismatch  KEYS[4] remembers another request
--   limited   over the rate
--   spent     fewer tokens are left than ARGV[4]
--   off       an admin has disabled the key
--   disabled  ARGV[7] does not have the key's group

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'group', 'userId', 'holdsDue', 'enabled')
if not isOwn(key) then
	return nil
end
local balance, group, user = readBalance(key[3]), key[4] or '', key[5] or ''
if string.find(user, '\n', 1, true) then
	error('userId has a newline')
end

local function reply(outcome, held, left, deadline, id, rate)
	return string.format('%s %.0f %.0f %.0f', outcome, held, left, deadline) .. (rate or '') .. '\n' .. id
		.. '\n' .. user .. '\n' .. string.sub(group, 1, 64)
end

if key[7] == '0' then
	return reply('off', 0, balance, 0, '')
end
if KEYS[4] then
	local before = call('GET', KEYS[4])
	if before then
		local request, held, left, deadline, id = string.match(before, '^(%S+) (%d+) (%d+) (%d+) (%S+)$')
		if not request then
			error('malformed record of an Idempotency-Key')
		elseif request ~= ARGV[8] then
			return reply('mismatch', 0, balance, 0, '')
		end
		return reply('replayed', tonumber(held), tonumber(left), tonumber(deadline), id)
	end
end
local _, found = string.find(ARGV[7], '\255' .. group .. '\254', 1, true)
if not found then
	return reply('disabled', 0, balance, 0, '')
end
local now = milliseconds()
local limit, window = string.match(ARGV[7], '^(%d+) (%d+)', found + 1)
local rate = limit and measureRate(limit, window)
if rate and isOverRate(rate) then
	return reply('limited', 0, balance, 0, '', describeRate(rate))
end
balance = returnExpired(KEYS[3], key[6], balance, now)
balance = refillBalance(balance, ARGV[7], found + 1)
if balance < tonumber(ARGV[4]) or balance < 1 then
	return reply('spent', 0, balance, 0, '', rate and describeRate(rate))
end

local held, deadline = math.min(tonumber(ARGV[3]), balance), now + tonumber(ARGV[6])
local left = balance - held
if rate then
	local denied = acceptRequest(rate)
	if denied then
		return denied
	end
end
if KEYS[4] then
	call('SET', KEYS[4], string.format('%s %.0f %.0f %.0f %s', ARGV[8], held, left, deadline, ARGV[5]), 'PX', day)
end
call('HSET', KEYS[3], ARGV[5], string.format('%.0f %.0f', held, deadline))
local expires = call('PEXPIRETIME', KEYS[1])
if expires > 0 then -- the holds of a key end with it
	call('PEXPIREAT', KEYS[3], expires)
end
local due = call('HGET', KEYS[1], 'holdsDue')
if not due or tonumber(due) > deadline then
	call('HSET', KEYS[1], 'holdsDue', string.format('%.0f', deadline))
end
addTokens(balance, -held)
return reply('held', held, left, deadline, ARGV[5], rate and describeRate(rate))
