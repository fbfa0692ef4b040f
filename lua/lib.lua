-- What scripts share; it comes first in each.
--
-- A script defines its functions anew each time it runs. Each local that one of them captures costs about as much
-- again, so the functions that follow use redis.call, not call.
--
-- What a script has read of an API key may not be what tollgate writes. Then it ends with an error whose code is
-- MALFORMED, which the store recognizes, and whose text does not quote the value.

local call, pcall = redis.call, redis.pcall

local maxAmount = 9007199254740991 -- 2^53-1: up to here, Lua's numbers are exact
local day = 86400000 -- in milliseconds
local tenMinutes = 600000 -- in milliseconds: how long records of requests that took no tokens are kept

-- errorOf returns a result of pcall if it is an error, as when Redis denies the command; else nil.
local function errorOf(result)
	if type(result) == 'table' and result.err then
		return result
	end
end
