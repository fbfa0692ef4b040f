-- Looks at an API key.
--
-- KEYS[1] apiKey:<apiKey>
--
-- Returns {tenantId, userId, group, createdAt, tokensLeft, when it expires (Unix time in ms, negative: never or no such key)}.

local key = redis.call('HMGET', KEYS[1], 'tenantId', 'userId', 'group', 'createdAt', 'tokensLeft')
key[6] = redis.call('PEXPIRETIME', KEYS[1])
return key
