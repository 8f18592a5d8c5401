-- Gives a session its next generation, if it is at the one named or the one after; to the same call,
-- when it comes again because its answer was lost, the same one.
--
-- KEYS[1]   session: hash of g (generation), r (record) and c (the call that resumed it last)
-- ARGV      1 generation, 2 time to live (ms), 3 digits that name the call
-- Returns   {next generation, record}, or {} if it may not be resumed

local found = redis.call("HMGET", KEYS[1], "g", "r", "c")
local known, asked = tonumber(found[1] or -1), tonumber(ARGV[1])
if found[3] == ARGV[3] then
  return {known, found[2]}
end
if not found[1] or (known ~= asked and known ~= asked + 1) then
  return {}
end
redis.call("HSET", KEYS[1], "g", string.format("%.0f", known + 1), "c", ARGV[3])
redis.call("PEXPIRE", KEYS[1], ARGV[2])
return {known + 1, found[2]}
