-- What scripts share; it comes first in each.
--
-- A script defines its functions anew each time it runs. Each local that one of them captures costs about as much
-- again, so the functions that follow use redis.call, not call.

local call, pcall = redis.call, redis.pcall

local maxAmount = 9007199254740991 -- 2^53-1: up to here, Lua's numbers are exact
local day = 86400000 -- in milliseconds

-- errorOf returns a result of pcall if it is an error, as when Redis denies the command; else nil.
local function errorOf(result)
	if type(result) == 'table' and result.err then
		return result
	end
end

-- malformed ends the script: what it has read of an API key is not what tollgate writes. The error has a code of its
-- own, which the store recognizes. what must not quote the value.
local function malformed(what)
	error({err = 'MALFORMED ' .. what})
end
