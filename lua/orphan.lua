-- Deletes an API key that shares the balance of a key that is gone: it has expired, or an earlier version has revoked it.
--
-- KEYS[1] apiKey:<apiKey> of the key that shares, and KEYS[2] {apiKey:<apiKey>}:first of it
-- KEYS[3] apiKey:<apiKey> of the key that has the balance, KEYS[4] {apiKey:<apiKey>}:successor and KEYS[5]
--         {apiKey:<first>}:current of it, see rotate.lua: while they name another, that has the balance
-- KEYS[6] {apiKey:<first>}:shares, see share.lua
-- ARGV[1] the key that has the balance, and ARGV[2] the name that it had first
--
-- Returns 1 if it was deleted, else 0.

local current, successor = call('GET', KEYS[5]) or ARGV[1], call('GET', KEYS[4]) or ''
if call('HGET', KEYS[1], 'sharesFirst') ~= ARGV[2] or call('EXISTS', KEYS[3]) == 1 or current ~= ARGV[1]
	or successor ~= '' and successor ~= 'forget' then
	return 0
end
call('PEXPIRE', KEYS[2], 40 * day)
call('UNLINK', KEYS[1], KEYS[6])
return 1
