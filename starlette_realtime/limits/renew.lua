-- Lets holders hold on. Makes nobody one.
--
-- KEYS      holders: sorted sets, all of one slot in a Cluster
-- ARGV      1 time to live (ms), then a holder for each key
-- Returns   the places (from 1) of the holders that are none
-- Work      a fixed number of commands for each holder

local time = redis.call("TIME")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local life = tonumber(ARGV[1])
local gone = {}
for place, key in ipairs(KEYS) do
  local holder = ARGV[1 + place]
  if redis.call("ZSCORE", key, holder) then
    redis.call("ZADD", key, string.format("%.0f", now + life), holder)
    redis.call("PEXPIRE", key, life, "GT")
  else
    gone[#gone + 1] = place
  end
end
return gone
