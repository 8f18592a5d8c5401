-- Takes tokens out of a bucket.
--
-- KEYS[1]   bucket: hash of l (level) and t (when that was, in s)
-- ARGV      1 tokens, 2 rate per second, 3 burst
-- Returns   how many there were to take, as text: 0 for less than one

local LONGEST = 30 * 86400

local time = redis.call("TIME")
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local rate, burst = tonumber(ARGV[2]), tonumber(ARGV[3])
local found = redis.call("HMGET", KEYS[1], "l", "t")
local level = burst
if found[1] then
  -- A clock that was set back takes nothing away.
  local passed = math.max(0, now - tonumber(found[2]))
  level = math.min(burst, tonumber(found[1]) + passed * rate)
end
local taken = math.min(tonumber(ARGV[1]), level)
if taken < 1 then
  taken = 0
end
level = level - taken
redis.call("HSET", KEYS[1], "l", string.format("%.17g", level), "t", string.format("%.6f", now))
-- Full again, it is as good as unknown.
local filled = rate > 0 and (burst - level) / rate or LONGEST
redis.call("EXPIRE", KEYS[1], math.ceil(math.min(filled, LONGEST)) + 1)
return string.format("%.17g", taken)
