-- Functions for scripts that count a request against the rate limit of an API key. Limits, and windows in seconds, are
-- text, as ARGV has them.
--
-- KEYS[2] {apiKey:<apiKey>}:rate: the times (µs, Redis's clock) of the requests accepted within the window, oldest
--         first
--
-- Converting a number to text or back costs about as much as a command, so that numbers stay text if they can. Adding
-- to a text converts it for half of what tonumber costs. The state of a limit is several values: a table of them, and
-- functions for what is done once, made a limited charge 15 % dearer.

-- clampLog sets the entries that are later than now to now, and returns the oldest and the newest. Such entries were
-- written by a server whose clock is ahead of that of its successor.
local function clampLog(window, now)
	local entries = redis.call('LRANGE', KEYS[2], '0', '-1')
	for i, entry in ipairs(entries) do
		local time = tonumber(entry)
		if not time or not (time >= 0 and time <= maxAmount) then
			error('malformed rate log')
		end
		entries[i] = math.min(time, now)
	end
	table.sort(entries)
	local oldest, newest = entries[1], entries[#entries]
	redis.call('DEL', KEYS[2])
	for first = 1, #entries, 1000 do -- Lua's stack bounds the arguments of a call
		local last = math.min(first + 999, #entries)
		for i = first, last do
			entries[i] = string.format('%.0f', entries[i])
		end
		redis.call('RPUSH', KEYS[2], unpack(entries, first, last))
	end
	redis.call('PEXPIRE', KEYS[2], window .. '000')
	return oldest, newest
end

-- measureRate returns the state of a rate limit, a sliding log, from which it removes what has left the window: how
-- many requests remain, below 0 if the limit was lowered; the oldest entry, false if the log is empty; when the window
-- began; and the entry for a request that is accepted now. If none remains, a request is over the limit.
local function measureRate(limit, window)
	local time = redis.call('TIME')
	local entry = time[1] .. (#time[2] == 6 and time[2] or string.sub('00000' .. time[2], -6))
	local now = entry + 0
	local start = now - window * 1000000
	local oldest = redis.call('LINDEX', KEYS[2], '0')
	if not oldest then
		return limit + 0, false, start, entry
	end
	local used, newest = redis.call('LLEN', KEYS[2]), redis.call('LINDEX', KEYS[2], '-1') + 0
	oldest = oldest + 0
	if not (0 <= oldest and oldest <= newest and newest <= now) then
		oldest, newest = clampLog(window, now)
	end

	-- Mostly only the oldest has left the window, if any. If there are many, the first that stays is found by doubling an
	-- index and then bisecting.
	local left, first = -1, 0
	while oldest and oldest <= start do
		left, first = first, 2 * first + 1
		oldest = redis.call('LINDEX', KEYS[2], first == 1 and '1' or first)
		oldest = oldest and oldest + 0
	end
	while first - left > 1 do
		local middle = math.floor((left + first) / 2)
		local at = redis.call('LINDEX', KEYS[2], middle)
		at = at and at + 0
		if at and at <= start then
			left = middle
		else
			first, oldest = middle, at
		end
	end
	if first > 0 then
		if oldest and not (oldest <= newest) then
			error('malformed rate log')
		end
		redis.call('LTRIM', KEYS[2], first == 1 and '1' or first, '-1')
		used = used - first
	end

	local remaining = limit - used
	if remaining <= 0 and oldest then
		-- The window may have become longer since these were accepted. GT changes only a sooner expiry.
		local ends = string.format('%.0f', math.floor(newest / 1000) + window * 1000)
		redis.call('PEXPIREAT', KEYS[2], ends, 'GT')
	end
	return remaining, oldest, start, entry
end

-- acceptRequest adds an entry to the log and returns nil. If Redis denies a command, it adds none and returns the error.
local function acceptRequest(entry, window)
	redis.call('RPUSH', KEYS[2], entry)
	local set = redis.pcall('PEXPIRE', KEYS[2], window .. '000')
	if set ~= 1 then
		redis.pcall('LTRIM', KEYS[2], '0', '-2')
		return set
	end
end

-- describeRate returns ' <requests> <window in s> <requests remaining> <s until a slot frees>'. A slot frees when the
-- oldest entry leaves the window. If the limit was lowered, limit-1 entries must remain.
local function describeRate(limit, window, remaining, oldest, start)
	if limit == '0' then
		return ' 0 ' .. window .. ' 0 ' .. window
	end
	local wait = 0
	if oldest then
		if remaining < 0 then
			oldest, remaining = redis.call('LINDEX', KEYS[2], -remaining), 0
		end
		wait = math.ceil((oldest - start) / 1000000)
	end
	return ' ' .. limit .. ' ' .. window .. string.format(wait < 2147483648 and ' %d %d' or ' %d %.0f', remaining, wait)
end
