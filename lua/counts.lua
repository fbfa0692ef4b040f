-- A function for scripts that add to the sums of a day.

-- addCounts adds numbers to fields of the hash key, whose sums stay at or below 2^53-1. ARGV[from…to] are groups of
-- three: a field; the field that takes its place if it is new and the hash has as many as it may have; and the number
-- to add. For a field of a model, most are modelMost, for others, most.
local function addCounts(key, from, to, most, modelMost)
	local length = redis.call('HLEN', key)
	for i = from, to, 3 do
		local field = ARGV[i]
		local before = redis.call('HGET', key, field)
		if not before and length >= (string.sub(field, 1, 6) == 'model ' and modelMost or most) then
			field = ARGV[i + 1]
			before = redis.call('HGET', key, field)
		end
		if not before then
			length = length + 1
		end
		local sum = math.min((tonumber(before or '') or 0) + tonumber(ARGV[i + 2]), maxAmount)
		redis.call('HSET', key, field, string.format('%.0f', sum))
	end
end
