-- Functions for scripts that take tokens out of a balance to hold them.

local mostHolds = 1000 -- that a key may have open

-- refusal returns the outcome for a key that may not hold anything, whatever its balance is: 'off', 'disabled' or
-- 'denied', see hold.lua. enabled and group are its fields, groups and denied what hold.lua takes. If the key may, it
-- returns nil and where the name of its group ends in groups.
local function refusal(enabled, group, groups, denied)
	if enabled == '0' then
		return 'off'
	end
	local _, found = string.find(groups, '\255' .. group .. '\254', 1, true)
	if not found then
		return 'disabled'
	elseif string.find(denied, '\255' .. group .. '\254', 1, true) then
		return 'denied'
	end
	return nil, found
end

-- tokensToHold returns how many tokens are to be held, nil if the balance does not suffice. most, least and words are
-- what hold.lua takes.
local function tokensToHold(ledger, most, least, words)
	local held = math.min(most, ledger.balance)
	if held < most and string.find(words, 'patient', 1, true) and ledger.balance + ledger.leased >= most then
		least = most
	end
	if ledger.balance < least or held < 1 then
		return nil
	elseif held < most and string.find(words, 'half', 1, true) then
		held = least + math.floor((held - least) / 2)
	end
	return held
end
