-- A function for scripts that look for a hold of an API key.
--
-- ARGV[1] tenant ID
-- ARGV[2] the tenant's generation, '' unless a tenant of that ID was deleted

-- moved returns {'moved', the user's API key to which the holds of a temp_ key move, '' if that is not known, the user
-- ID, '-' if they have moved}; nil if they do not. closed is {apiKey:<apiKey>}:closed of the temp_ key, see close.lua.
local function moved(closed)
	local tokens, owner, key = string.match(redis.call('GET', closed) or '', '^(%S+) ([^\n]*)\n?(.*)$')
	local tenant = ARGV[1] .. ' ' .. ARGV[2] .. ' '
	if owner and string.sub(owner, 1, #tenant) == tenant then
		return {'moved', key, string.sub(owner, #tenant + 1), tokens}
	end
end
