-- The quick form of hold.lua, for most holds of the gateway. It does what hold.lua does; or it changes nothing and
-- returns '', and hold.lua must decide. That is so if the key is refused for anything else than a lack of tokens, its
-- rate or the number of its requests; if its group has a refill; if its balance was advanced, see holds.lua; if one of
-- its holds has expired, or will within a second; if an earlier version has changed its holds; if a hold has 10^13
-- tokens or more, or all of them together have; and if something is malformed.
--
-- hold.lua takes Redis 1.7 times as long: it reads and converts more, and a script defines each of its functions anew
-- when it runs. It also sets the expiry of the holds to that of the key each time. This sets it for the first hold only,
-- since key.lua, which changes the expiry of a key, changes that of its holds as well.
--
-- KEYS[1] apiKey:<apiKey>
-- KEYS[2] {apiKey:<apiKey>}:rate, see rate.lua; omitted, as that is, if no group has a rate limit
-- KEYS[3] {apiKey:<apiKey>}:holds, see holds.lua; KEYS[2] without a rate limit
-- ARGV[1] tenant ID
-- ARGV[2] the most tokens to hold, and ARGV[3] the fewest, as hold.lua takes them
-- ARGV[4] hold ID, which begins with lease_
-- ARGV[5] time to live of the hold in milliseconds
-- ARGV[6] groups of the tenant, as charge.lua takes them
-- ARGV[7] the tenant's generation, ARGV[8] words, and ARGV[9] groups that are denied what the hold is for, as hold.lua
--         takes them; omitted if all of them are ''
--
-- Returns what hold.lua does, but with '' in place of the name that the key had first if that is its name.

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'group', 'enabled', 'userId', 'first',
	'holdsDue', 'advanced', 'tokensHeld', 'leases')
if key[1] ~= ARGV[1] or (key[2] or '') ~= (ARGV[7] or '') then
	return nil
end
local left, group, user, due = key[3], key[4] or '', key[6] or '', key[8]
if not left then -- see readBalance in balance.lua
	local with = call('HMGET', KEYS[1], 'sharesWith', 'sharesFirst')
	return with[1] and with[2] and {err = 'SHARED ' .. with[1] .. ' ' .. with[2]} or ''
end
if #left > 16 or left ~= '0' and not string.find(left, '^[1-9]%d*$') or left + 0 > maxAmount or #ARGV[2] > 13
	or key[9] or user ~= '' and string.find(user, '\n', 1, true) then
	return ''
end
local refused, found = refusal(key[5], group, ARGV[6], ARGV[9] or '')
local limits = not refused and string.match(ARGV[6], '^[^\253\255]*%f[%z\255]', found + 1) -- not with a refill
if not limits then
	return ''
end
-- The sum of two numbers of up to 13 digits becomes text without string.format, which costs as much as a command.
local time, holds = call('TIME'), KEYS[3] or KEYS[2]
local count, leased, sum = '0', '0', '0'
if due then
	count, leased, sum = string.match(key[11] or '', '^(%d+) (%d+) ([1-9]%d*)$')
	if not sum or sum ~= key[10] or #count > 4 or #leased > 13 or #sum > 13 or #due > 13
		or not string.find(due, '^[1-9]%d*$') or due / 1000 < time[1] + 1 then
		return ''
	end
	local open = call('HLEN', holds)
	if open == 0 or open >= mostHolds then
		return ''
	end
end

local limit, window, concurrent
local remaining, oldest, start, entry -- see measureRate
if limits ~= '' then
	limit, window = string.match(limits, '^(%d+) (%d+)')
	concurrent = string.match(limits, '\252(%d+)$')
end
if limit then
	remaining, oldest, start, entry = measureRate(limit, window)
end
local held, outcome = ARGV[2], nil
if limit and remaining <= 0 then
	outcome, leased = 'limited', '0'
elseif concurrent and count + 0 >= concurrent + 0 then
	outcome = 'busy'
elseif left + 0 < held + 0 then
	held = tokensToHold({balance = left + 0, leased = leased + 0}, held + 0, ARGV[3] + 0, ARGV[8] or '')
	outcome = not held and 'spent'
end
if outcome then
	local rate = limit and describeRate(limit, window, remaining, oldest, start) or ''
	return outcome .. ' ' .. leased .. ' ' .. left .. ' 0' .. rate .. '\n\n'
		.. (key[7] or '') .. '\n' .. user .. '\n' .. group
end
if limit then
	local denied = acceptRequest(entry, window)
	if denied then
		return denied
	end
	remaining, oldest = remaining - 1, oldest or entry
end
left = left - held
held, left = held .. '', left < 1e14 and left .. '' or string.format('%.0f', left)
local deadline = math.floor(time[1] * 1000 + time[2] / 1000) + ARGV[5] .. ''
call('HSET', holds, ARGV[4], held .. ' ' .. deadline)
if due then
	if deadline - due < 0 then
		call('HSET', KEYS[1], 'holdsDue', deadline)
	end
	sum = sum + held .. ''
	call('HSET', KEYS[1], 'tokensLeft', left, 'tokensHeld', sum,
		'leases', count + 1 .. ' ' .. leased + held .. ' ' .. sum)
else
	local expires = call('PEXPIRETIME', KEYS[1])
	if expires > 0 then -- the holds of a key end with it
		call('PEXPIREAT', holds, expires)
	end
	call('HSET', KEYS[1], 'tokensLeft', left, 'tokensHeld', held, 'leases', '1 ' .. held .. ' ' .. held,
		'holdsDue', deadline)
end
local rate = limit and describeRate(limit, window, remaining, oldest, start) or ''
return 'held ' .. held .. ' ' .. left .. ' ' .. deadline .. rate .. '\n' .. ARGV[4]
	.. '\n' .. (key[7] or '') .. '\n' .. user .. '\n' .. group
