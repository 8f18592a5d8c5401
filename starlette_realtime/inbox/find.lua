-- Finds a letter by its id.
--
-- KEYS[1]   meta key
-- ARGV[1]   id
-- Returns   {entry, 1 if it is read}, or {} if it is not kept

local at = stand(KEYS[1])
if expire(at) then
  return false
end
local offset = redis.call("HGET", key(at, "yi"), ARGV[1])
local entry = offset and entry_at(at, offset)
return entry and {entry, is_read(at, entry)} or {}
