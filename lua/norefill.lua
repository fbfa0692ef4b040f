-- Takes the place of refill.lua for tenants without a refill.

local refillBalance
