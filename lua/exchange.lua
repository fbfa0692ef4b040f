-- Settles a hold of a session as settle.lua does, and takes another in its place, once, however often it is repeated. If
-- that is refused, the first is settled all the same, and a repetition tries to take the other.
--
-- KEYS[1…5]  as settle.lua takes them
-- KEYS[6]    {apiKey:<first>}:settled:<ARGV[13]>
-- ARGV[1…10] as settle.lua takes them; ARGV[3] has all groups, ARGV[8] is ''
-- ARGV[11]   the most tokens to hold, and ARGV[12] the fewest, as hold.lua takes them
-- ARGV[13]   the other hold's ID. It counts neither for the rate limit, nor is it refused for what else is under way
-- ARGV[14]   its time to live in milliseconds
-- ARGV[15]   words, and ARGV[16] groups that are denied what it is for, as hold.lua takes them
-- ARGV[17]   what a visitor's key that is closed has returned as the fifth after 'moved'; omitted if there was none
--
-- Returns what settle.lua does; if the outcome is 'settled' or 'replayed', with three more: the outcome of the other
-- hold, as hold.lua has it, or 'unknown' if that was settled before; the tokens held, or if it was refused those of the
-- gateway's holds of the key; the balance.

if outcome == 'mismatch' then
	return {outcome, charged, left, group}
end

local function reply(taken, tokens)
	return {outcome, charged, left, group, taken, string.format('%.0f', tokens), string.format('%.0f', ledger.balance)}
end

local other = before and call('HGET', KEYS[3], ARGV[13])
if other then
	return reply('held', (parseHold(other)))
elseif before and call('EXISTS', KEYS[6]) == 1 then
	return reply('unknown', 0)
end
local refused = refusal(sharer and sharer.off or call('HGET', KEYS[1], 'enabled'), group, ARGV[3], ARGV[16])
if not refused and call('HLEN', KEYS[3]) >= mostHolds then
	refused = 'crowded'
end
local tokens = tokensToHold(ledger, tonumber(ARGV[11]), tonumber(ARGV[12]), ARGV[15])
if refused or not tokens then
	return reply(refused or 'spent', ledger.leased)
end
openHold(KEYS[3], ledger, ARGV[13], tokens, milliseconds() + ARGV[14], '')
return reply('held', tokens)
