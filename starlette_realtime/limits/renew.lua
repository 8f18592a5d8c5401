-- Lets holders hold on. Makes nobody one.
--
-- KEYS      holders: sorted sets, all of one slot in a Cluster
-- ARGV      1 time to live (ms), then a holder for each key
-- Work      a fixed number of commands for each holder

local time = redis.call("TIME")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local life = tonumber(ARGV[1])
for index, key in ipairs(KEYS) do
  redis.call("ZADD", key, "XX", string.format("%.0f", now + life), ARGV[1 + index])
  redis.call("PEXPIRE", key, life, "GT")
end
return 0
