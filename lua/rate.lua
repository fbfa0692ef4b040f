-- Functions for scripts that count a request against the rate limit of an API key. The Go code puts this file before
-- them.
--
-- KEYS[2] {apiKey:<apiKey>}:rate: the times (µs, Redis's clock) of the requests accepted within the window, oldest first

local function number(entry)
	if #entry > 16 or not string.find(entry, '^%d+$') then
		error('malformed rate log')
	end
	return tonumber(entry)
end

-- read returns the entry at an index of the rate log, nil if there is none.
local function read(index)
	local entry = redis.call('LINDEX', KEYS[2], index)
	return entry and number(entry)
end

-- clamp sets the entries that are later than now to now. They were written by a server whose clock is ahead of that of
-- its successor.
local function clamp(now, window)
	local entries = redis.call('LRANGE', KEYS[2], 0, -1)
	for i, entry in ipairs(entries) do
		entries[i] = math.min(number(entry), now)
	end
	table.sort(entries)
	redis.call('DEL', KEYS[2])
	for first = 1, #entries, 1000 do -- Lua's stack bounds the arguments of a call
		local last = math.min(first + 999, #entries)
		for i = first, last do
			entries[i] = string.format('%.0f', entries[i])
		end
		redis.call('RPUSH', KEYS[2], unpack(entries, first, last))
	end
	redis.call('PEXPIRE', KEYS[2], window .. '000')
end

-- prune removes the entries that have left the window. It returns the oldest that remains. Mostly none or one has left.
-- If many have, the first that has not is found by doubling an index and then bisecting.
local function prune(now, window)
	local start = now - window * 1000000
	local oldest = read(0)
	if oldest and math.max(oldest, read(-1)) > now then
		clamp(now, window)
		oldest = read(0)
	end
	if not oldest or oldest > start then
		return oldest
	end
	local left, first = 0, 1
	oldest = read(first)
	while oldest and oldest <= start do
		left, first = first, first * 2
		oldest = read(first)
	end
	while first - left > 1 do
		local middle = math.floor((left + first) / 2)
		local at = read(middle)
		if at and at <= start then
			left = middle
		else
			first, oldest = middle, at
		end
	end
	redis.call('LTRIM', KEYS[2], first, -1)
	return oldest
end

-- measureRate returns the state of a rate limit: a sliding log, whose length after pruning is the number of requests
-- within the window.
local function measureRate(limit, window)
	local time = redis.call('TIME')
	local rate = {limit = tonumber(limit), window = window, now = time[1] * 1000000 + time[2]}
	rate.oldest = prune(rate.now, window)
	rate.used = rate.oldest and redis.call('LLEN', KEYS[2]) or 0
	return rate
end

-- isOverRate reports whether a rate limit refuses a request now.
local function isOverRate(rate)
	if rate.used < rate.limit then
		return false
	end
	if rate.used > 0 then -- the window may be longer than it was when these were accepted
		redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', math.ceil(read(-1) / 1000) + rate.window * 1000))
	end
	return true
end

-- acceptRequest adds a request to the log. It returns an error if Redis denies a command.
local function acceptRequest(rate)
	rate.used = redis.call('RPUSH', KEYS[2], string.format('%.0f', rate.now))
	rate.oldest = rate.oldest or rate.now
	return redis.pcall('PEXPIRE', KEYS[2], rate.window .. '000')
end

-- describeRate returns ' <requests> <window in s> <requests remaining> <s until a slot frees>'. A slot frees when the
-- oldest entry leaves the window. If the limit was lowered, limit-1 entries must remain.
local function describeRate(rate)
	local wait = 0
	if rate.limit == 0 then
		wait = rate.window
	elseif rate.used > 0 then
		local oldest = rate.oldest
		if rate.used > rate.limit then
			oldest = read(rate.used - rate.limit)
		end
		wait = math.ceil((oldest + rate.window * 1000000 - rate.now) / 1000000)
	end
	return string.format(' %d %s %d %.0f', rate.limit, rate.window, math.max(rate.limit - rate.used, 0), wait)
end

