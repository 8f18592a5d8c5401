-- Lets sessions end later, or sooner, unless a newer generation of them is kept. What has ended stays
-- so.
--
-- KEYS      sessions, all of one slot in a Cluster: hashes of g (generation) and r (record)
-- ARGV      1 time to live (ms), then a generation for each session
-- Returns   for each that was not renewed: its place (from 1), and the generation there is, 0 for none

local others = {}
for place, key in ipairs(KEYS) do
  local known = tonumber(redis.call("HGET", key, "g") or 0)
  if known == 0 or known > tonumber(ARGV[1 + place]) then
    others[#others + 1] = place
    others[#others + 1] = known
  else
    redis.call("PEXPIRE", key, ARGV[1])
  end
end
return others
