-- Functions for scripts that change the holds of an API key.
--
-- KEYS[1] apiKey:<apiKey>: its field holdsDue is at or before the earliest deadline (Unix ms) of its open holds, and
--         absent if there are none
--
-- {apiKey:<apiKey>}:holds, at another place in KEYS, has hold ID → '<tokens> <deadline in Unix ms>' of each open hold,
-- whose tokens are not part of the balance.

-- parseHold returns the tokens and the deadline of a hold.
local function parseHold(hold)
	local tokens, deadline = string.match(hold, '^(%d+) (%d+)$')
	if not tokens or #tokens > 16 or #deadline > 16 then
		error('malformed hold')
	end
	return tonumber(tokens), tonumber(deadline)
end

-- addTokens adds tokens, which may be negative, to a balance and returns it. It stays at 2^53-1 or below, even if an
-- admin has raised it meanwhile.
local function addTokens(balance, tokens)
	local sum = math.min(balance + tokens, maxAmount)
	if sum ~= balance then
		redis.call('HSET', KEYS[1], 'tokensLeft', string.format('%.0f', sum))
	end
	return sum
end

-- returnExpired adds the tokens of the holds whose deadline has passed to the balance, and returns that. While none is
-- due it does next to nothing.
local function returnExpired(holds, due, balance, now)
	if not due or tonumber(due) > now then
		return balance
	end
	local all = redis.call('HGETALL', holds)
	local returned, earliest = 0, nil
	for i = 1, #all, 2 do
		local tokens, deadline = parseHold(all[i + 1])
		if deadline <= now then
			returned = returned + tokens
			redis.call('HDEL', holds, all[i])
		elseif not earliest or deadline < earliest then
			earliest = deadline
		end
	end
	if earliest then
		redis.call('HSET', KEYS[1], 'holdsDue', string.format('%.0f', earliest))
	else
		redis.call('HDEL', KEYS[1], 'holdsDue')
	end
	return addTokens(balance, returned)
end
