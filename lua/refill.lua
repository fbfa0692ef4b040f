-- A function for scripts that look at the balance of an API key or take from it.
--
-- KEYS[1] apiKey:<apiKey>: its field refilledAt is when it was last found due for a refill, in Unix ms
-- It also reads {apiKey:<apiKey>}:holds, the open holds, which need not be among KEYS.

-- refillBalance raises the balance of a key to the tokens of its group's refill, if it is lower and a refill is due:
-- each period since the key was created one is. What open holds have taken counts as part of the balance: else a key
-- could hold its tokens over the end of a period and have more afterwards than a refill gives. groups is what
-- charge.lua takes, from is where what it says of the key's group begins. It returns the balance and refilledAt.
local function refillBalance(balance, groups, from)
	local tokens, every = string.match(groups, '^[%d ]*\253(%d+) (%d+)', from)
	if not tokens then
		return balance, ''
	end
	local key = redis.call('HMGET', KEYS[1], 'createdAt', 'refilledAt', 'holdsDue')
	local year, month, day, hour, minute, second =
		string.match(key[1] or '', '^(%d%d%d%d)%-(%d%d)%-(%d%d)T(%d%d):(%d%d):(%d%d%.?%d*)')
	if not year then
		malformed('createdAt is not a time')
	end
	-- The days since 1970-01-01 of a date in the Gregorian calendar whose years begin in March.
	local years, months = tonumber(year), tonumber(month) - 3
	if months < 0 then
		years, months = years - 1, months + 12
	end
	local days = 365 * years + math.floor(years / 4) - math.floor(years / 100) + math.floor(years / 400)
		+ math.floor((153 * months + 2) / 5) + tonumber(day) - 1 - 719468
	local sign, hours, minutes = string.match(key[1], '([+-])(%d%d):(%d%d)$') -- Z is the usual, and UTC
	local offset = sign and tonumber(sign .. '1') * (hours * 60 + minutes) or 0
	local created = math.floor((((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1000 + 0.5)

	local period, last = every * 1000, tonumber(key[2] or created)
	local due = created + (math.floor((last - created) / period) + 1) * period
	local now = milliseconds()
	if now < due then
		return balance, key[2] or ''
	end
	local held, holds = 0, key[3] and redis.call('HGETALL', '{' .. KEYS[1] .. '}:holds') or {}
	for i = 2, #holds, 2 do
		held = held + string.match(holds[i], '^%d+')
	end
	balance = math.max(balance, tonumber(tokens) - held)
	local refilled = string.format('%.0f', now)
	redis.call('HSET', KEYS[1], 'refilledAt', refilled, 'tokensLeft', string.format('%.0f', balance))
	return balance, refilled
end
