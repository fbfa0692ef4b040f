-- Notes that a temp_ API key is known to be closed for good, after its tokens were added to a user's API key. A request
-- that still runs may not know that, so the key's digest is remembered for another 10 min.
--
-- KEYS[1] {apiKey:<apiKey>}:moves of the user, see receive.lua; the time is negative from now on
-- ARGV[1] digest of the temp_ API key
-- ARGV[2] milliseconds for which KEYS[1] remembers those that are not known to be closed
--
-- Returns 1.

local time = call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
if call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
	call('HSET', KEYS[1], ARGV[1], string.format('-%.0f', now))
end
-- Earlier versions let a user merge any number, so that not all can be looked at.
local some, open = call('HRANDFIELD', KEYS[1], 100, 'WITHVALUES'), call('HLEN', KEYS[1]) > 100
for i = 1, #some, 2 do
	local at = tonumber(some[i + 1]) or 0
	if at <= 0 and now + at > tenMinutes or at > 0 and now - at > tonumber(ARGV[2]) then
		call('HDEL', KEYS[1], some[i])
	else
		open = open or at > 0
	end
end
if not open then
	call('PEXPIRE', KEYS[1], tenMinutes)
end
return 1
