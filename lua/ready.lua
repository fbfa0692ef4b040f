#!lua flags=allow-oom
-- Fails where Redis would deny what a charge or a login needs: a script that is stopped in the middle has done half.
--
-- KEYS[…] prefixes of keys
-- ARGV[…] the commands on keys with each of them, separated by spaces

for i, key in ipairs(KEYS) do
	for command in string.gmatch(ARGV[i], '%u+') do
		if redis.acl_check_cmd and not redis.acl_check_cmd(command, key) then
			return redis.error_reply('NOPERM the user may not run ' .. command)
		end
	end
end
return 'OK'
