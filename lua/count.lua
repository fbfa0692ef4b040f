-- Counts an event whose number in a day (UTC) is limited.
--
-- KEYS[1] the count, which is kept until the day ends
-- ARGV[1] the most in a day; '-' takes one back
--
-- Returns 0 if it was counted, else the seconds until the day ends.

local seconds = call('TIME')[1]
local ends = seconds - seconds % 86400 + 86400
local count = tonumber(call('GET', KEYS[1]) or 0)
if ARGV[1] == '-' then
	call('SET', KEYS[1], math.max(count - 1, 0), 'EXAT', ends)
	return 0
elseif count >= tonumber(ARGV[1]) then
	return ends - seconds
end
call('SET', KEYS[1], count + 1, 'EXAT', ends)
return 0
