-- Fails if Redis would deny a command that the service needs. A script that is denied one has already run in part.
--
-- KEYS[1] a key that the server keeps: if it is not the master of that key's slot, it does not run the script
-- ARGV[…] a prefix of keys, then the commands on keys with it, separated by spaces; and so on

for i = 1, #ARGV, 2 do
	for command in string.gmatch(ARGV[i + 1], '%u+') do
		if redis.acl_check_cmd and not redis.acl_check_cmd(command, ARGV[i]) then
			return redis.error_reply('NOPERM the user may not run ' .. command)
		end
	end
end
return 'OK'
