-- Reads whose an API key is, and when it was created and expires.
--
-- KEYS[1] apiKey:<apiKey>
--
-- Returns {tenant ID, the tenant's generation, user ID, createdAt, expiry (Unix ms; negative: never)}, each '' that the
-- key does not have.

local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'userId', 'createdAt')
return {key[1] or '', key[2] or '', key[3] or '', key[4] or '', call('PEXPIRETIME', KEYS[1])}
