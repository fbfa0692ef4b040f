-- Reads a config's history.
--
-- KEYS[1] {tenant:<tenantId>:config}:history
-- ARGV[1] the ETag of a version, or '' for all
--
-- Returns the newest version's config, nil where there is none; or of all versions, newest first, the lines
-- '<ETag> <saved at> <saved by>' without the configs.

local lines = {}
for i, version in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
	local line, config = string.match(version, '^([^\n]*)\n(.*)$')
	if ARGV[1] ~= '' and string.sub(line, 1, 40) == ARGV[1] then
		return config
	end
	lines[i] = line
end
return ARGV[1] == '' and lines or nil
