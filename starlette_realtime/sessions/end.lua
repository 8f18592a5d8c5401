-- Forgets a session, unless it has a newer generation.
--
-- KEYS[1]   session: hash of g (generation) and r (record)
-- ARGV[1]   generation
-- Returns   0 if it has a newer one, else 1

local known = redis.call("HGET", KEYS[1], "g")
if known and tonumber(known) > tonumber(ARGV[1]) then
  return 0
end
redis.call("DEL", KEYS[1])
return 1
