-- Takes the place of rate.lua in scripts that must not need memory. charge.lua calls no other function of rate.lua if
-- measureRate is nil.

local measureRate
