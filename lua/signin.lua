-- Reads or changes what is known of a user who signs in.
--
-- KEYS[1] signIn:<tenantId>:<provider>:<subject>, see signInRecord
-- KEYS[2] {signIn:<tenantId>:<provider>:<subject>}:moves: temp_ API key → the user's API key to which what is left of
--         it is being moved
-- ARGV[1] the value that KEYS[1] must have to be changed; '' if it must not exist
-- ARGV[2] its new value; '' deletes it; the same as ARGV[1] only reads it
-- ARGV[3] a temp_ API key to add to KEYS[2], ARGV[4] the user's API key, and ARGV[5] for how long KEYS[2] is kept then,
--         in ms; all three may be omitted
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
	call('HSET', KEYS[2], ARGV[3], ARGV[4])
	call('PEXPIRE', KEYS[2], ARGV[5])
end
return {value, unpack(call('HGETALL', KEYS[2]))}
