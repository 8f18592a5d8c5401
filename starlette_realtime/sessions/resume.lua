-- Gives a session its next generation, if it is at the one named or the one after.
--
-- KEYS[1]   session: hash of g (generation) and r (record)
-- ARGV      1 generation, 2 time to live (ms)
-- Returns   {next generation, record}, or {} if it may not be resumed

local found = redis.call("HMGET", KEYS[1], "g", "r")
local known, asked = tonumber(found[1] or -1), tonumber(ARGV[1])
if not found[1] or (known ~= asked and known ~= asked + 1) then
  return {}
end
redis.call("HSET", KEYS[1], "g", string.format("%.0f", known + 1))
redis.call("PEXPIRE", KEYS[1], ARGV[2])
return {known + 1, found[2]}
