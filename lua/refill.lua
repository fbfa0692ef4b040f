-- A function for scripts that look at the balance of an API key or take from it.
--
-- KEYS[1] apiKey:<apiKey>: its field refilledAt is when it was last found due for a refill, in Unix ms; see holds.lua
--         for holdsDue and advanced

-- daysUntil returns the days from 1970-01-01 until a date in the Gregorian calendar, whose years begin in March here.
local function daysUntil(year, month, date)
	local months = month - 3
	if months < 0 then
		year, months = year - 1, months + 12
	end
	return 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
		+ math.floor((153 * months + 2) / 5) + date - 1 - 719468
end

-- nextRefill returns when a key is due for its next refill: created is when it was created, last when it was last found
-- due, both in Unix ms; every is the period in seconds, 'day' or 'month' (UTC). refill.next in tenant.go is the same.
local function nextRefill(created, last, every)
	last = math.max(created, last)
	if every == 'day' then
		return (math.floor(last / day) + 1) * day
	elseif every == 'month' then
		local days = math.floor(last / day)
		local year = 1970 + math.floor(days / 365.2425)
		local month = 1 + math.floor((days - daysUntil(year, 1, 1)) / 31) -- or a later one, by a few days
		local first
		repeat
			month = month + 1
			first = daysUntil(year + math.floor((month - 1) / 12), (month - 1) % 12 + 1, 1)
		until first > days
		return first * day
	end
	local period = every * 1000
	return created + (math.floor((last - created) / period) + 1) * period
end

-- refillBalance raises the balance of a key to the tokens of its group's refill, if it is lower and a refill is due.
-- What it gives while holds are open is noted as advanced: what these holds give back then repays it. So the balance is
-- the same afterwards as if they had ended before the refill, and a key that holds its tokens over the end of a period
-- has no more than a refill gives. groups is what charge.lua takes, from is where what it says of the key's group
-- begins, now is the time in Unix ms if the caller has read it. It returns the balance, refilledAt, and the tokens that
-- it has advanced; or nil if a refill is due, but a hold has expired by now whose tokens must be returned first.
local function refillBalance(balance, groups, from, now)
	local tokens, every = string.match(groups, '^[%d ]*\253(%d+) (%w+)', from)
	if not tokens then
		return balance, '', 0
	end
	local key = redis.call('HMGET', KEYS[1], 'createdAt', 'refilledAt', 'holdsDue', 'advanced')
	local year, month, date, hour, minute, second =
		string.match(key[1] or '', '^(%d%d%d%d)%-(%d%d)%-(%d%d)T(%d%d):(%d%d):(%d%d%.?%d*)')
	if not year then
		error({err = 'MALFORMED createdAt is not a time'})
	end
	local sign, hours, minutes = string.match(key[1], '([+-])(%d%d):(%d%d)$') -- Z is the usual, and UTC
	local offset = sign and tonumber(sign .. '1') * (hours * 60 + minutes) or 0
	local created = ((daysUntil(year, month, date) * 24 + hour) * 60 + minute - offset) * 60 + second
	created = math.floor(created * 1000 + 0.5)

	local last = tonumber(key[2] or created)
	local holdsDue, advanced = tonumber(key[3] or maxAmount), tonumber(key[4] or 0)
	if not (last and holdsDue and advanced) then
		error({err = 'MALFORMED refilledAt, holdsDue or advanced is not a number'})
	end
	local due = nextRefill(created, last, every)
	now = now or milliseconds()
	if now < due then
		return balance, key[2] or '', 0
	end
	if holdsDue <= now then
		return nil
	end
	local given = math.max(tonumber(tokens) - balance, 0)
	local refilled = string.format('%.0f', now)
	redis.call('HSET', KEYS[1], 'refilledAt', refilled, 'tokensLeft', string.format('%.0f', balance + given))
	if given == 0 or not key[3] then
		return balance + given, refilled, 0
	end
	redis.call('HSET', KEYS[1], 'advanced', string.format('%.0f', math.min(advanced + given, maxAmount)))
	return balance + given, refilled, given
end
