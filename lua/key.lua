-- Changes an API key, if requested, and returns it.
--
-- KEYS[1]  apiKey:<apiKey>
-- KEYS[2]  {apiKey:<apiKey>}:holds, see holds.lua; this and the others are omitted if nothing is to be changed
-- KEYS[3]  {apiKey:<first>}:current, see rotate.lua
-- KEYS[4]  {apiKey:<apiKey>}:first, see rotate.lua; with sharer.lua, this and the next are those of the key that shares,
--          whose are createdAt, the expiry, enabled, the label and what KEYS[5] remembers
-- KEYS[5]  {apiKey:<first>}:update:<digest of the Idempotency-Key>, which remembers what is returned: for 40 days if
--          the balance was changed, else for one; omitted without an Idempotency-Key
-- KEYS[6]  {apiKey:<first>}:shares, see share.lua, or KEYS[5] if that is omitted; only with sharer.lua, and if ARGV[7]
--          is not ''
-- ARGV[1]  tenant ID
-- ARGV[2]  the tenant's generation, '' unless a tenant of that ID was deleted
-- ARGV[3]  what to do to the balance: 'add', 'set', 'take' (ARGV[4] is added, but no more is taken than is there), or
--          '': nothing. Setting it also forfeits what open holds would give back
-- ARGV[4]  by or to how many tokens, a whole number up to ± 2^53-1; with 'take' it is negative
-- ARGV[5]  the new group; '': the group stays
-- ARGV[6]  '0' to disable the key, '1' to enable it; '': neither
-- ARGV[7]  milliseconds after which it expires, '0' for never; '': the expiry stays
-- ARGV[8]  the name that the key had first, as far as the caller knows
-- ARGV[9]  digest of the request; '' without KEYS[5]
-- ARGV[10] 'replay' if nothing may be changed, but what KEYS[5] remembers is to be returned; else ''
-- ARGV[11] groups of the tenant, as charge.lua takes them; '' if none has a refill
-- ARGV[12] the only group that ARGV[11] has; '' if it has all
-- ARGV[13] 'malformed' if the key is known to be: then only what is changed is written, and nothing is read that may be
--          wrong; not for a look, nor with 'add' or 'take'
-- ARGV[14] '=' and the new label, with nothing after it if the key is to have none; '': the label stays
--
-- Returns {userId, group, createdAt, tokensLeft, expiry (Unix time in ms; negative: never), '0' if the key is disabled,
-- refilledAt, tokens held, label or '', tokens taken by 'take', createdAt of the key that has the balance, by which it
-- is refilled}, with a twelfth element if these are those of the first time; nil if the tenant has no such key. Or
-- nothing was changed, except that a refill that was due may have been, and it returns
--   due        a hold has expired whose tokens must be returned first
--   below      the balance would be below 0
--   above      the balance would be above 2^53-1
--   mismatch   KEYS[5] remembers another request
--   new        KEYS[5] remembers none, and ARGV[10] is 'replay'
--   first      with a newline and the name that the key had first, if that is not ARGV[8]
--   group      with a newline and the group that the key has or would have, if that is not ARGV[12]
-- Or the key was changed as requested, ARGV[13] is 'malformed', and it returns
--   malformed  with a newline and 'replayed' if that was done before

local name = sharer and sharer.name or KEYS[1] -- of the key to look at for all but the balance
local shares = sharer and ARGV[7] ~= '' and table.remove(KEYS)
local key = call('HMGET', KEYS[1], 'tenantId', 'generation', 'tokensLeft', 'createdAt', 'userId', 'group', 'holdsDue',
	'enabled', 'first', 'tokensHeld', 'advanced', 'label')
local own, left, createdAt, user, due = isOwn(key), key[3], key[4], key[5] or '', key[7]
local enabled, first, label, since = key[8] or '', key[9], key[12] or '', createdAt
if sharer then
	createdAt, enabled, label = sharer.createdAt, sharer.enabled or '', sharer.label or ''
end
if KEYS[5] and not own then
	first = call('GET', KEYS[4])
end
if KEYS[2] and first and first ~= ARGV[8] then
	return 'first\n' .. first
end
local record = KEYS[5]
if record then
	local before = call('HMGET', record, 'tenantId', 'generation', 'request', 'userId', 'group', 'createdAt',
		'tokensLeft', 'expiresAt', 'enabled', 'refilledAt', 'tokensHeld', 'malformed', 'label', 'taken', 'since')
	if before[3] and (isOwn(before) or own and not before[1]) then -- earlier versions have not recorded the tenant
		if before[3] ~= ARGV[9] then
			return 'mismatch'
		elseif before[12] then
			return 'malformed\nreplayed'
		end
		return {before[4], before[5], before[6], before[7], before[8], before[9] or '', before[10] or '',
			before[11] or '0', before[13] or '', before[14] or '0', before[15] or before[6], 1}
	end
end
if ARGV[10] == 'replay' then
	return 'new'
elseif not own then
	return nil
end
local group = ARGV[5] ~= '' and ARGV[5] or key[6] or ''
if ARGV[12] ~= '' and ARGV[12] ~= group then
	return 'group\n' .. group
end

local readable = ARGV[13] == ''
if not readable and not left and call('HEXISTS', KEYS[1], 'sharesWith') == 1 then
	readBalance()
end
local balance, refilledAt, held = tonumber(left) or 0, '', '0'
if readable then
	balance = readBalance(left)
	local now = due and milliseconds()
	if now and readAmount(due, 'holdsDue') <= now then
		return 'due'
	end
	for _, time in ipairs({createdAt or '', since or ''}) do
		if not string.find(time, '^%d%d%d%d%-%d%d%-%d%dT') then
			malformed('createdAt is not a time')
		end
	end
	held = due and string.format('%.0f', readAmount(key[10], 'tokensHeld')) or '0'
	local _, found = string.find(ARGV[11], '\255' .. group .. '\254', 1, true)
	if found then
		balance, refilledAt = refillBalance(balance, ARGV[11], found + 1, now)
		left = string.format('%.0f', balance)
	end
end
local fields, taken = {}, 0
if ARGV[3] ~= '' then
	if ARGV[3] == 'take' then
		taken = math.min(-ARGV[4], balance)
		balance = balance - taken
	else
		balance = ARGV[3] == 'add' and balance + ARGV[4] or tonumber(ARGV[4])
	end
	left = string.format('%.0f', balance)
	fields = {'tokensLeft', left}
	if balance < 0 then
		return 'below'
	elseif balance > maxAmount then
		return 'above'
	end
end
if ARGV[3] == 'set' and due and readable then
	local all, holds = readAmount(key[11], 'advanced'), call('HGETALL', KEYS[2])
	for i = 2, #holds, 2 do
		all = all + parseHold(holds[i])
	end
	fields[3], fields[4] = 'advanced', string.format('%.0f', math.min(all, maxAmount))
end
if ARGV[5] ~= '' then
	fields[#fields + 1] = 'group'
	fields[#fields + 1] = group
end
local others = sharer and {} or fields
if ARGV[6] ~= '' then
	enabled = ARGV[6]
	others[#others + 1] = 'enabled'
	others[#others + 1] = enabled
end
if ARGV[14] ~= '' and ARGV[14] ~= '=' .. label then
	label = string.sub(ARGV[14], 2)
	others[#others + 1] = 'label'
	others[#others + 1] = label
end
taken = string.format('%.0f', taken)

-- The key changes last, and its balance and group in one command: if Redis denies one of these, the balance is as it
-- was, and a caller that repeats the request finds no record of it.
if ARGV[7] == '0' then
	call('PERSIST', name)
	for i = sharer and 4 or 2, 4 do
		call('PERSIST', KEYS[i])
	end
elseif ARGV[7] ~= '' then
	call('PEXPIRE', name, ARGV[7])
end
local expires = call('PEXPIRETIME', name)
if ARGV[7] ~= '' and expires > 0 then -- :holds and :current expire with the key, :first 40 days later
	if not sharer then
		call('PEXPIREAT', KEYS[2], expires)
		call('PEXPIREAT', KEYS[3], expires)
	end
	call('PEXPIREAT', KEYS[4], expires + 40 * day)
end
if shares then
	call('ZADD', shares, expires > 0 and expires or '+inf', string.sub(name, #'apiKey:' + 1))
end
if record then
	call('HSET', record, 'request', ARGV[9], 'tenantId', ARGV[1], 'generation', ARGV[2])
	if readable then
		call('HSET', record, 'userId', user, 'group', group, 'createdAt', createdAt, 'tokensLeft', left,
			'expiresAt', expires, 'enabled', enabled, 'refilledAt', refilledAt, 'tokensHeld', held, 'label', label,
			'taken', taken, 'since', since)
	else
		call('HSET', record, 'malformed', '1')
	end
	local denied = errorOf(pcall('PEXPIRE', record, ARGV[3] ~= '' and 40 * day or day))
	if denied then -- undo the record
		call('DEL', record)
		return denied
	end
end
if sharer and #others > 0 then
	call('HSET', name, unpack(others))
end
if #fields > 0 then
	local denied = errorOf(pcall('HSET', KEYS[1], unpack(fields)))
	if denied then
		if record then
			call('PEXPIRE', record, 0) -- undo the record; unlike DEL, this is allowed: it was before
		end
		return denied
	end
end
if not readable then
	return 'malformed'
end
return {user, group, createdAt, left, expires, enabled, refilledAt, held, label, taken, since}
