-- Functions for scripts that know of payments. What a payment has granted is remembered for 400 days, also after its key
-- is revoked, beside the key that it was made with, by the name that this had first.
--
-- {apiKey:<first>}:paid:<ID>, at a place in KEYS, is by the ID of Stripe's object
--   a Checkout Session or invoice
--     'granted <tokens> <refunded> <taken> <changes> <disputes> <entries> <facts>': the tokens granted; those that refunds
--                    are for; those that disputes have taken, and give back if they are won; how often it has changed
--                    what is to be taken; its disputes, each ',<ID>:<0: open, 1: lost, 2: won>', or '='; its last
--                    changes, each ',<which>:<refund or dispute>:<± tokens>:<Unix ms>:<charge>', or '='; and what the
--                    caller has given
--     'to <first name> <facts>'  the key is gone, and another has that record or will have it
--     'unassigned = <facts>'     the key is gone, and nobody else was there
--   a payment intent  'for <ID of its Checkout Session>'
--   a subscription    'ended'
-- {apiKey:<first>}:paid:receiver is the first name of the key that gets what is paid once this one is gone.

local paidFor = 400 * day

-- changePaid sets record, of which before is the value ('' if it has none), and then fields of the key, or neither: then
-- it returns the error.
local function changePaid(record, value, before, fields)
	redis.call('SET', record, value, 'PX', paidFor)
	local denied = #fields > 0 and errorOf(redis.pcall('HSET', KEYS[1], unpack(fields)))
	if denied then
		redis.call('SET', record, before, 'PX', before ~= '' and paidFor or 1) -- DEL may be denied, too
		return denied
	end
end

-- addState adds to fields what the state of a subscription changes in a key. A subscription that is not the key's present
-- one changes the version alone: callers that have asked Stripe before this must ask again.
--   present, version, before, group  the key's fields subscription, subscriptionVersion, groupBefore and group
--   id       ID of the subscription
--   paid     the group in which the key is while it is paid; '' if it is not paid
--   free     the group when it is not paid; '': the one before
--   ended    '1' if it has ended for ever
--   last     if an invoice of it is granted now, the key's field lastSubscription, which is the last one whose invoice
--            has set the group; else nil. This makes it the present one, unless it is not paid and the present one is
local function addState(fields, present, version, before, group, id, paid, free, ended, last)
	local wasPaid = before ~= ''
	local was = {subscription = present, groupBefore = before, group = group, lastSubscription = last}
	if last and ended ~= '1' and (paid ~= '' or not wasPaid) then
		present = id
	end
	if paid ~= '' and present == id then
		if group == '' then
			error({err = 'MALFORMED group is missing'})
		end
		group, before = paid, wasPaid and before or group
	elseif paid == '' and wasPaid and present == id then
		group, before = free ~= '' and free or before, ''
	elseif paid == '' and last and last ~= id and not wasPaid and free ~= '' then
		group = free -- as if it had been paid before
	end
	if last and (present == id or not wasPaid) then
		last = id
	end
	if ended == '1' and present == id then
		present = ''
	end
	local now = {subscription = present, groupBefore = before, group = group, lastSubscription = last,
		subscriptionVersion = string.format('%.0f', version + 1)}
	for name, text in pairs(now) do
		if text ~= was[name] then
			fields[#fields + 1] = name
			fields[#fields + 1] = text
		end
	end
end
