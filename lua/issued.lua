-- A function for scripts that make an API key, once for the request that has an Idempotency-Key.

-- issuedBefore returns {API key, balance} if the record of the Idempotency-Key says that this request has made a key;
-- 'mismatch' if it remembers another request; 'new' if it remembers none and mode is 'replay'; else nil. request is the
-- digest of the request.
local function issuedBefore(record, request, mode)
	local before = redis.call('HMGET', record, 'request', 'apiKey', 'tokensLeft')
	if before[1] == request then
		return {before[2], before[3]}
	end
	return before[1] and 'mismatch' or mode == 'replay' and 'new' or nil
end
