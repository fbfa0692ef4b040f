-- Forgets a response that a provider no longer keeps.
--
-- KEYS[1] and KEYS[2] as in keep.lua
-- ARGV[1] the ID of the response

call('HDEL', KEYS[1], ARGV[1])
call('ZREM', KEYS[2], ARGV[1])
return 1
