-- Reads or changes what is known of a user who signs in.
--
-- KEYS[1] signIn:<tenantId>:<provider>:<subject>, see signInRecord
-- KEYS[2] {signIn:<tenantId>:<provider>:<subject>}:moves: temp_ API key → the user's API key to which what is left of
--         it is being moved
-- KEYS[3] {signIn:<tenantId>:<provider>:<subject>}:merges: how many were added to KEYS[2] this day (UTC); kept until it
--         ends
-- ARGV[1] the value that KEYS[1] must have to be changed; '' if it must not exist
-- ARGV[2] its new value; '' deletes it; the same as ARGV[1] only reads it
-- ARGV[3] a temp_ API key to add to KEYS[2], ARGV[4] the user's API key, ARGV[5] for how long KEYS[2] is kept then, in
--         ms, ARGV[6] the most that are added in a day: beyond it nothing is added, and ARGV[7] 'alone' if it is only
--         added when KEYS[2] has no other, else ''; all five may be omitted
--
-- Returns the value of KEYS[1] then, '' if it does not exist, and the fields and values of KEYS[2].

local value = call('GET', KEYS[1]) or ''
if value == ARGV[1] and ARGV[1] ~= ARGV[2] then
	if ARGV[2] == '' then
		call('DEL', KEYS[1])
	else
		call('SET', KEYS[1], ARGV[2])
	end
	value = ARGV[2]
end
if ARGV[3] and call('HEXISTS', KEYS[2], ARGV[3]) == 0 then
	local merges = tonumber(call('GET', KEYS[3]) or 0)
	if merges < tonumber(ARGV[6]) and (ARGV[7] == '' or call('EXISTS', KEYS[2]) == 0) then
		local seconds = call('TIME')[1]
		call('SET', KEYS[3], merges + 1, 'EXAT', seconds - seconds % 86400 + 86400)
		call('HSET', KEYS[2], ARGV[3], ARGV[4])
		call('PEXPIRE', KEYS[2], ARGV[5])
	end
end
return {value, unpack(call('HGETALL', KEYS[2]))}
