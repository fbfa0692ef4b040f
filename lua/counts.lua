-- A function for scripts that add to the sums of a day.

-- addCounts adds numbers to fields of the hash key, which has length fields. The sums stay at or below 2^53-1.
-- ARGV[from…to] are groups of three: a field, which is there once; the field that takes its place if it is new and the
-- hash has as many as it may have; and the number to add. For a field of a model, these are modelMost, for others, most.
local function addCounts(key, length, from, to, most, modelMost)
	local names, fields, others = {}, {}, {}
	for i = from, to, 3 do
		names[#names + 1] = ARGV[i]
	end
	local before = #names > 0 and redis.call('HMGET', key, unpack(names)) or {}
	local function add(field, sum, number)
		fields[#fields + 1] = field
		fields[#fields + 1] = string.format('%.0f', math.min((tonumber(sum or '') or 0) + tonumber(number), maxAmount))
	end
	for i, field in ipairs(names) do
		local arg = from + 3 * i - 3
		if before[i] or length < (string.sub(field, 1, 6) == 'model ' and modelMost or most) then
			length = before[i] and length or length + 1
			add(field, before[i], ARGV[arg + 2])
		else
			others[#others + 1] = arg
		end
	end
	if #fields > 0 then
		redis.call('HSET', key, unpack(fields))
	end
	for _, arg in ipairs(others) do -- several may have the same place
		fields = {}
		add(ARGV[arg + 1], redis.call('HGET', key, ARGV[arg + 1]), ARGV[arg + 2])
		redis.call('HSET', key, unpack(fields))
	end
end
