-- Takes the place of rate.lua in scripts that must not need memory.

local measureRate
