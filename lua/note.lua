-- Remembers which API key a request makes, before another script makes it in another slot.
--
-- KEYS[1] the record of the request's Idempotency-Key, as issue.lua keeps it: for 40 days
-- ARGV[1] the API key, ARGV[2] its balance, and ARGV[3] a digest of the request
-- ARGV[4] 'replay' if nothing may be remembered; else ''
--
-- Returns {API key, balance}: those that KEYS[1] remembers now. Or nothing was written, and it returns 'mismatch' if
-- KEYS[1] remembers another request, or 'new' if it remembers none and ARGV[4] is 'replay'.

local before = issuedBefore(KEYS[1], ARGV[3], ARGV[4])
if before then
	return before
end
call('HSET', KEYS[1], 'request', ARGV[3], 'apiKey', ARGV[1], 'tokensLeft', ARGV[2])
local denied = errorOf(pcall('PEXPIRE', KEYS[1], 40 * day))
if denied then
	call('DEL', KEYS[1])
end
return denied or {ARGV[1], ARGV[2]}
