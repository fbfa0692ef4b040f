-- Reads a config's history.
--
-- KEYS[1] {tenant:<tenantId>:config}:history
-- ARGV[1] the ETag of a version, or '' for all
--
-- Returns the config of the newest version with that ETag, nil if no version has it; or, for '', the lines
-- '<ETag> <saved at> <saved by>' of all versions, newest first.

local lines = {}
for i = 1, redis.call('LLEN', KEYS[1]) do -- one at a time, without a pattern: each may be 1 MiB, and others wait
	local version = redis.call('LINDEX', KEYS[1], i - 1)
	local newline = string.find(version, '\n', 1, true) or error('malformed history')
	if ARGV[1] ~= '' and string.sub(version, 1, 40) == ARGV[1] then
		return string.sub(version, newline + 1)
	end
	lines[i] = string.sub(version, 1, newline - 1)
end
return ARGV[1] == '' and lines or nil
