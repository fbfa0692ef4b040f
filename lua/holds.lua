-- Functions for scripts that open or end the holds of an API key.
--
-- KEYS[1] apiKey:<apiKey>, of whose fields these say what its open holds have taken out of the balance:
--         tokensHeld      their tokens together; absent if there are none
--         leases          '<open holds lease_> <tokens of all the gateway's> <tokensHeld>': what is part of
--                         tokensHeld. An earlier version does not keep it up, and then its last number is wrong;
--                         absent if nothing is held
--         holdsDue        when the first of them is to be ended (Unix ms), or earlier; absent if there are none
--         advanced        tokens that the balance was given, by refills or because an admin has set it, in place of
--                         what open holds may give back; counted since the key last had no open hold; absent: 0
--         repaid          which of the advanced tokens are repaid by holds that have ended: '<from>-<to> …', in order,
--                         counted from 0 to advanced; absent: none
--         hold:<hold ID>  '<advanced> <debt> <advanced there> <digest>' of one: the field advanced when it was opened;
--                         if it was a visitor's, the digest of the temp_ key and that key's advanced when it was opened,
--                         else '- 0'; and the digest of its Idempotency-Key or ''; absent: '0 - 0 '
--         debt:<digest>   '<open holds> <advanced> <repaid>' of a visitor's key whose holds have moved here
--
-- An example: of 100 tokens 60 are held. A refill raises the 40 to 100: advanced is 60. Another 30 are held, with
-- '60 - 0 ' as their note. If both holds are cancelled, the first gives back 60, which repay 0-60, and adds nothing to
-- the balance; the second adds 30, since it was opened when 60 were advanced, and nothing was since.
--
-- {apiKey:<apiKey>}:holds, at another place in KEYS, has hold ID → '<tokens> <deadline in Unix ms>' of each open hold.
-- Earlier versions know only this hash and holdsDue. The IDs of the gateway's holds begin with lease_, and each of these
-- stands for one request under way, or with extra_: these are further ones of a session, which has one lease_.

-- malformed ends the script, see lib.lua.
local function malformed(what)
	error({err = 'MALFORMED ' .. what})
end

-- readAmount returns a field of the key as a number, 0 if it is absent.
local function readAmount(text, name)
	local amount = tonumber(text or 0)
	if text and text ~= '0' and not string.find(text, '^[1-9]%d*$') or amount > maxAmount then
		malformed(name .. ' is not a whole number from 0 to 2^53-1')
	end
	return amount
end

-- parseHold returns the tokens and the deadline of a hold.
local function parseHold(hold)
	local tokens, deadline = string.match(hold, '^(%d+) (%d+)$')
	if not tokens or #tokens > 16 or #deadline > 16 then
		malformed('a hold is not two whole numbers')
	end
	return tonumber(tokens), tonumber(deadline)
end

-- readSpans returns the spans that a field repaid has.
local function readSpans(repaid)
	local spans = {}
	for from, to in string.gmatch(repaid or '', '(%d+)-(%d+)') do
		spans[#spans + 1] = {tonumber(from), tonumber(to)}
	end
	return spans
end

-- writeSpans returns the field repaid for spans. There are 250 at most: if the oldest is forgotten, a hold may repay the
-- same tokens again, at the expense of the key.
local function writeSpans(spans)
	local all = {}
	for i = math.max(#spans - 249, 1), #spans do
		all[#all + 1] = string.format('%.0f-%.0f', spans[i][1], spans[i][2])
	end
	return table.concat(all, ' ')
end

-- countLease counts a hold, if it is one of the gateway, or counts it out: then n is -1, else 1.
local function countLease(ledger, id, tokens, n)
	local kind = string.sub(id, 1, 6)
	if kind == 'lease_' then
		ledger.leases = math.max(ledger.leases + n, 0)
	end
	if kind == 'lease_' or kind == 'extra_' then
		ledger.leased = math.max(ledger.leased + n * tokens, 0)
	end
end

-- newLedger returns the state of a key's balance and holds, of which left, held, due, advanced, repaid and leases are
-- the fields. Functions that change it change the fields as well, but for those that saveLedger writes. Without due
-- nothing is held: an earlier version that ends the last hold leaves tokensHeld as it was. leases is counted anew if an
-- earlier version has opened or ended holds meanwhile.
local function newLedger(holds, left, held, due, advanced, repaid, leases)
	local ledger = { -- with now, eight fields; Lua doubles the memory of a table for a ninth
		balance = readBalance(left), held = due and readAmount(held, 'tokensHeld') or 0,
		due = due and readAmount(due, 'holdsDue'), advanced = readAmount(advanced, 'advanced'), spans = readSpans(repaid),
		leases = 0, leased = 0,
	}
	if due then
		local count, tokens, sum = string.match(leases or '', '^(%d+) (%d+) (%d+)$')
		if count and sum == held then
			ledger.leases, ledger.leased = tonumber(count), tonumber(tokens)
		else
			local all = redis.call('HGETALL', holds)
			for i = 1, #all, 2 do
				countLease(ledger, all[i], parseHold(all[i + 1]), 1)
			end
		end
	end
	return ledger
end

-- writeHeld returns the fields tokensHeld and leases.
local function writeHeld(ledger)
	local held = string.format('%.0f', math.min(math.max(ledger.held, 0), maxAmount))
	return held, string.format('%d %.0f %s', ledger.leases, ledger.leased, held)
end

-- joinSpans joins the spans that no open hold tells apart: between what was advanced when one was opened and when the
-- next was, it only matters how much is repaid.
local function joinSpans(holds, ledger)
	local marks, seen, all = {}, {}, redis.call('HGETALL', holds)
	for i = 1, #all, 2 do
		local mark = tonumber(string.match(redis.call('HGET', KEYS[1], 'hold:' .. all[i]) or '0', '^%d+') or 0)
		if not seen[mark] then
			seen[mark] = true
			marks[#marks + 1] = mark
		end
	end
	table.sort(marks)
	local joined = {}
	for i, from in ipairs(marks) do
		local to, repaid = marks[i + 1] or ledger.advanced, 0
		for _, span in ipairs(ledger.spans) do
			repaid = repaid + math.max(math.min(span[2], to) - math.max(span[1], from), 0)
		end
		if repaid > 0 then
			joined[#joined + 1] = {from, from + repaid}
		end
	end
	ledger.spans = joined
end

-- saveLedger writes the balance, and what is held and repaid. If no hold is open any more, nothing is to be repaid.
local function saveLedger(holds, ledger)
	local left = string.format('%.0f', ledger.balance)
	for name, debt in pairs(ledger.debts or {}) do
		if debt.open == 0 then
			redis.call('HDEL', KEYS[1], name)
		else
			redis.call('HSET', KEYS[1], name, string.format('%d %.0f ', debt.open, debt.advanced) .. writeSpans(debt.spans))
		end
	end
	if redis.call('EXISTS', holds) == 1 then -- holdsDue may now be too early, which costs one look at the holds
		local held, leases = writeHeld(ledger)
		redis.call('HSET', KEYS[1], 'tokensLeft', left, 'tokensHeld', held, 'leases', leases)
		if ledger.changed then
			if #ledger.spans > 64 then
				joinSpans(holds, ledger)
			end
			redis.call('HSET', KEYS[1], 'repaid', writeSpans(ledger.spans))
		end
		return
	end
	ledger.held, ledger.due, ledger.advanced, ledger.spans, ledger.changed = 0, nil, 0, {}, false
	ledger.leases, ledger.leased = 0, 0
	redis.call('HDEL', KEYS[1], 'tokensHeld', 'leases', 'holdsDue', 'advanced', 'repaid')
	redis.call('HSET', KEYS[1], 'tokensLeft', left)
end

-- repay lets a hold repay what was advanced since it was opened, the oldest first, with at most that many tokens. It
-- returns the spans that are repaid then, and how many tokens it takes. Since it takes the oldest, it does not matter in
-- which order holds give back.
local function repay(advanced, spans, opened, tokens)
	if opened >= advanced then
		return spans, 0
	end
	local all, at, rest = {}, opened, tokens
	local function add(from, to)
		local last = all[#all]
		if last and last[2] == from then
			last[2] = to
		else
			all[#all + 1] = {from, to}
		end
	end
	for i = 1, #spans + 1 do
		local from = spans[i] and spans[i][1] or advanced
		if at < from and rest > 0 then
			local n = math.min(rest, from - at)
			add(at, at + n)
			rest = rest - n
		end
		if spans[i] then
			add(from, spans[i][2])
			at = math.max(at, spans[i][2])
		end
	end
	return all, tokens - rest
end

-- repayDebt lets a hold that was opened with a temp_ key, when that much was advanced, repay its debt there with at most
-- that many tokens, and returns how many it takes. The debt is forgotten with its last hold.
local function repayDebt(ledger, name, opened, tokens)
	ledger.debts = ledger.debts or {}
	local debt = ledger.debts[name]
	if not debt then
		local open, advanced, repaid = string.match(redis.call('HGET', KEYS[1], name) or '', '^(%d+) (%d+) (.*)$')
		if not open then
			return 0
		end
		debt = {open = tonumber(open), advanced = tonumber(advanced), spans = readSpans(repaid)}
		ledger.debts[name] = debt
	end
	local taken
	debt.spans, taken = repay(debt.advanced, debt.spans, opened, tokens)
	debt.open = debt.open - 1
	return taken
end

-- repayFor lets a hold that ends repay with at most that many tokens: first the debt of the temp_ key that it was opened
-- with, then what this key was advanced. note is its field hold:<hold ID>. It returns how many it takes.
local function repayFor(ledger, note, tokens)
	local opened, debt, there = string.match(note or '0 - 0 ', '^(%d+) (%S+) (%d+) ')
	local taken, n = 0, 0
	if debt and debt ~= '-' then
		taken = repayDebt(ledger, 'debt:' .. debt, tonumber(there), tokens)
	end
	if opened and ledger.advanced > 0 and tokens > taken then
		ledger.spans, n = repay(ledger.advanced, ledger.spans, tonumber(opened), tokens - taken)
		ledger.changed = true
	end
	return taken + n
end

-- endHold ends a hold of that many tokens with a charge of used, as far as the hold and the balance cover it, and
-- returns what was charged. note is the field hold:<hold ID>. The balance stays at 2^53-1 or below, even if an admin
-- has raised it meanwhile.
local function endHold(holds, ledger, id, tokens, used, note)
	local charged = math.min(used, tokens + ledger.balance)
	local back = tokens - charged
	if note or back > 0 then
		back = back - repayFor(ledger, note, math.max(back, 0))
	end
	ledger.balance = math.min(ledger.balance + back, maxAmount)
	ledger.held = ledger.held - tokens
	countLease(ledger, id, tokens, -1)
	redis.call('HDEL', holds, id)
	if note then
		redis.call('HDEL', KEYS[1], 'hold:' .. id)
	end
	return charged
end

-- returnExpired ends holds whose deadline has passed, without a charge: 100 at most, so that Redis can serve others in
-- between. It reports whether some are left; then the script must return, and the caller lets release.lua end them.
-- While none is due it does nothing. It looks at all holds: if there are many it does so 10 times a second at most, so
-- that some may end 0.1 s late.
local function returnExpired(holds, ledger)
	if not ledger.due then
		return false
	end
	local now = milliseconds()
	ledger.now = now
	if ledger.due > now then
		return false
	end
	local all, expired = redis.call('HGETALL', holds), {}
	local earliest, more = nil, false
	ledger.held, ledger.leases, ledger.leased = 0, 0, 0
	for i = 1, #all, 2 do -- a malformed one must be found before anything is written
		local tokens, deadline = parseHold(all[i + 1])
		ledger.held = ledger.held + tokens
		countLease(ledger, all[i], tokens, 1)
		if deadline > now then
			earliest = math.min(earliest or deadline, deadline)
		elseif #expired < 100 then
			expired[#expired + 1] = {all[i], tokens, redis.call('HGET', KEYS[1], 'hold:' .. all[i])}
		else
			more = true
		end
	end
	for _, hold in ipairs(expired) do
		endHold(holds, ledger, hold[1], hold[2], 0, hold[3])
	end
	if not more then
		if earliest and #all > 200 then
			earliest = math.max(earliest, now + 100)
		end
		ledger.due = earliest
		if earliest then
			redis.call('HSET', KEYS[1], 'holdsDue', string.format('%.0f', earliest))
		end
	end
	saveLedger(holds, ledger)
	return more
end

-- openHold takes tokens out of the balance, which must cover them, and saves the ledger. digest is that of an
-- Idempotency-Key, '' without one.
local function openHold(holds, ledger, id, tokens, deadline, digest)
	redis.call('HSET', holds, id, string.format('%.0f %.0f', tokens, deadline))
	local expires = redis.call('PEXPIRETIME', KEYS[1])
	if expires > 0 then -- the holds of a key end with it
		redis.call('PEXPIREAT', holds, expires)
	end
	if ledger.advanced > 0 or digest ~= '' then
		redis.call('HSET', KEYS[1], 'hold:' .. id, string.format('%.0f - 0 ', ledger.advanced) .. digest)
	end
	ledger.balance, ledger.held = ledger.balance - tokens, ledger.held + tokens
	countLease(ledger, id, tokens, 1)
	ledger.due = math.min(ledger.due or deadline, deadline)
	local held, leases = writeHeld(ledger)
	redis.call('HSET', KEYS[1], 'tokensLeft', string.format('%.0f', ledger.balance), 'tokensHeld', held,
		'leases', leases, 'holdsDue', string.format('%.0f', ledger.due))
end

-- updateLedger returns expired holds and then, by the same reading of the clock, raises the balance by a refill of the
-- key's group that is due. It returns whether more holds have expired: then it has not looked for a refill.
local function updateLedger(holds, ledger, group, groups)
	if returnExpired(holds, ledger) then
		return true
	end
	local _, found = string.find(groups, '\255' .. group .. '\254', 1, true)
	if found then
		local advance
		ledger.balance, _, advance = refillBalance(ledger.balance, groups, found + 1, ledger.now)
		ledger.advanced = ledger.advanced + advance
	end
	return false
end
