-- Keeps or renews a session, unless a newer generation of it is kept.
--
-- KEYS[1]   session: hash of g (generation) and r (record)
-- ARGV      1 generation, 2 record, 3 time to live (ms)
-- Returns   1 if it was kept, else 0

local known = redis.call("HGET", KEYS[1], "g")
if known and tonumber(known) > tonumber(ARGV[1]) then
  return 0
end
redis.call("HSET", KEYS[1], "g", ARGV[1], "r", ARGV[2])
redis.call("PEXPIRE", KEYS[1], ARGV[3])
return 1
