-- Lets sessions end later, or sooner. What has ended stays so.
--
-- KEYS      sessions, all of one slot in a Cluster
-- ARGV[1]   time to live (ms)

for _, key in ipairs(KEYS) do
  redis.call("PEXPIRE", key, ARGV[1])
end
return 0
