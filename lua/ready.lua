#!lua flags=allow-oom
-- Fails where Redis would not carry out what the scripts for API keys do: one that stops in the middle has done half.
--
-- KEYS[1] apiKey:, {apiKey:…} or login: with anything behind it

local list = 'DEL GET SET PEXPIRE PEXPIREAT PEXPIRETIME HGET HMGET HSET HINCRBY LINDEX LLEN LTRIM RPUSH'
for command in string.gmatch(list, '%u+') do
	if not redis.acl_check_cmd(command, KEYS[1]) then
		return redis.error_reply('NOPERM the user may not run ' .. command)
	end
end
return 'OK'
