-- Replaces a string, if it is still what it was.
--
-- KEYS[1] the string
-- ARGV[1] what KEYS[1] must be; '' if it must not exist
-- ARGV[2] what it becomes
-- ARGV[3] milliseconds for which that is kept
--
-- Returns KEYS[1] as it is then.

local value = call('GET', KEYS[1]) or ''
if value ~= ARGV[1] then
	return value
end
call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return ARGV[2]
