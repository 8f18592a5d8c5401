-- Reads what the history lane keeps under an id.
--
-- KEYS[1]   meta key
-- ARGV[1]   id
-- Returns   {} for nothing, else {payload, what amends it or nil}
-- Work      a fixed number of commands

local at = place(KEYS[1])
local age = redis.call("HGET", at.meta, "a")
if age then
  local _, entry, amended = kept_under(at, ARGV[1], now() - tonumber(age))
  if entry then
    return {payload_of(entry), amended}
  end
end
return {}
