-- Forgets a session, unless it has a newer generation.
--
-- KEYS[1]   session: hash of g (generation) and r (record)
-- ARGV[1]   generation

local known = redis.call("HGET", KEYS[1], "g")
if known and tonumber(known) <= tonumber(ARGV[1]) then
  redis.call("DEL", KEYS[1])
end
return 0
