-- Functions for scripts that count a request against the rate limit of an API key.
--
-- KEYS[2] {apiKey:<apiKey>}:rate: the times (µs, Redis's clock) of the requests accepted within the window, oldest
--         first
--
-- Converting a number to text or back costs about as much as a command, so that numbers stay text if they can.

-- number returns an entry of the rate log as a number.
local function number(entry)
	local time = tonumber(entry)
	if not time or not (time >= 0 and time <= maxAmount) then
		error('malformed rate log')
	end
	return time
end

-- read returns the entry at an index of the rate log as a number, or nil if the log has no such index.
local function read(index)
	local entry = redis.call('LINDEX', KEYS[2], index)
	return entry and number(entry)
end

-- clamp sets the entries that are later than now to now, and reads the oldest and the newest again. Such entries were
-- written by a server whose clock is ahead of that of its successor.
local function clamp(rate)
	local entries = redis.call('LRANGE', KEYS[2], '0', '-1')
	for i, entry in ipairs(entries) do
		entries[i] = math.min(number(entry), rate.now)
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
	redis.call('PEXPIRE', KEYS[2], rate.window .. '000')
	rate.oldest, rate.newest = read('0'), read('-1')
end

-- prune removes the entries that are not later than start. The oldest must be one of them. Mostly it is the only one.
-- If there are many, the first that stays is found by doubling an index and then bisecting.
local function prune(rate, start)
	local left, first = 0, 1
	local oldest = read('1')
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
	redis.call('LTRIM', KEYS[2], first == 1 and '1' or first, '-1')
	rate.oldest, rate.used = oldest, rate.used - first
end

-- measureRate returns the state of a rate limit: a sliding log, whose length after pruning is the number of requests
-- within the window. limit and window are text; window is in seconds.
local function measureRate(limit, window)
	local time = redis.call('TIME')
	local rate = { -- with oldest and newest, eight fields; Lua doubles the memory of a table for a ninth
		limit = limit, window = window, most = tonumber(limit), used = redis.call('LLEN', KEYS[2]),
		now = time[1] * 1000000 + time[2], entry = time[1] .. string.sub('00000' .. time[2], -6),
	}
	if rate.used > 0 then
		rate.oldest, rate.newest = read('0'), read('-1')
		if rate.oldest > rate.now or rate.newest > rate.now then
			clamp(rate)
		end
		local start = rate.now - window * 1000000
		if rate.oldest <= start then
			prune(rate, start)
		end
	end
	return rate
end

-- isOverRate reports whether a rate limit refuses a request now.
local function isOverRate(rate)
	if rate.used < rate.most then
		return false
	end
	if rate.used > 0 then -- the window may have become longer since these were accepted. GT changes only a sooner expiry.
		local ends = string.format('%.0f', math.floor(rate.newest / 1000) + rate.window * 1000)
		redis.call('PEXPIREAT', KEYS[2], ends, 'GT')
	end
	return true
end

-- forgetRequest removes the request that acceptRequest has added.
local function forgetRequest()
	redis.pcall('LTRIM', KEYS[2], '0', '-2')
end

-- acceptRequest adds a request to the log and returns nil. If Redis denies a command, it adds none and returns the
-- error.
local function acceptRequest(rate)
	rate.used = redis.call('RPUSH', KEYS[2], rate.entry)
	rate.oldest = rate.oldest or rate.now
	local denied = errorOf(redis.pcall('PEXPIRE', KEYS[2], rate.window .. '000'))
	if denied then
		forgetRequest()
	end
	return denied
end

-- describeRate returns ' <requests> <window in s> <requests remaining> <s until a slot frees>'. A slot frees when the
-- oldest entry leaves the window. If the limit was lowered, limit-1 entries must remain.
local function describeRate(rate)
	local wait = 0
	if rate.most == 0 then
		wait = rate.window
	elseif rate.used > 0 then
		local oldest = rate.used > rate.most and read(rate.used - rate.most) or rate.oldest
		wait = math.ceil((oldest + rate.window * 1000000 - rate.now) / 1000000)
	end
	return string.format(' %s %s %d %.0f', rate.limit, rate.window, math.max(rate.most - rate.used, 0), wait)
end
