-- Lets sessions end later, or sooner. What has ended stays so.
--
-- KEYS      sessions, all of one slot in a Cluster
-- ARGV[1]   time to live (ms)
-- Returns   the places (from 1) of those that are not there

local gone = {}
for place, key in ipairs(KEYS) do
  if redis.call("PEXPIRE", key, ARGV[1]) == 0 then
    gone[#gone + 1] = place
  end
end
return gone
