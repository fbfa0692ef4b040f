-- Functions for scripts that count a request against the rate limit of an API key. Limits, and windows in seconds, are
-- text, as ARGV has them.
--
-- KEYS[2] {apiKey:<apiKey>}:rate: the times (µs, Redis's clock) of the requests accepted within the window, oldest
--         first
--
-- Converting a number to text or back costs about as much as a command, so that numbers stay text if they can, and
-- a calculation converts text for less than tonumber. The state of a limit is several values, since a table of them
-- would cost as much as a command, too.

-- repairLog removes all entries that are not later than start. Entries that are later than now become now: they were
-- written by a server whose clock is ahead of that of its successor. It returns the number of entries, the oldest and
-- the newest. What it needs is defined here, so that scripts which do not call it do not pay for that.
local function repairLog(window, start, now)
	local function number(entry)
		local time = tonumber(entry)
		if not time or not (time >= 0 and time <= maxAmount) then
			error('malformed rate log')
		end
		return time
	end
	local function read(index)
		local entry = redis.call('LINDEX', KEYS[2], index)
		return entry and number(entry)
	end
	if math.max(read(0), read(-1)) > now then
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
	local left, first, oldest = -1, 0, read(0) -- the first that stays is found by doubling an index and then bisecting
	while oldest and oldest <= start do
		left, first = first, 2 * first + 1
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
	if first > 0 then
		redis.call('LTRIM', KEYS[2], first, -1)
	end
	return redis.call('LLEN', KEYS[2]), oldest, read(-1)
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
	if not (start < oldest and oldest <= newest and newest <= now) then
		local second = redis.call('LINDEX', KEYS[2], '1')
		if second and 0 <= oldest and oldest <= newest and newest <= now and second + 0 > start then
			redis.call('LTRIM', KEYS[2], '1', '-1') -- mostly, one leaves the window for each that comes
			used, oldest = used - 1, second + 0
		else
			used, oldest, newest = repairLog(window, start, now)
		end
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
	local wait = 0
	if limit == '0' then
		remaining, wait = 0, window
	elseif oldest then
		if remaining < 0 then
			oldest, remaining = redis.call('LINDEX', KEYS[2], -remaining), 0
		end
		wait = math.ceil((oldest - start) / 1000000)
	end
	return ' ' .. limit .. ' ' .. window .. string.format(' %d %.0f', remaining, wait)
end
