-- Reads a page of the history lane.
--
-- KEYS[1]   meta key
-- ARGV      1 random digits, 2 "before" or "after", 3 offset that bounds it: exclusive for "after",
--           inclusive or "+inf" for "before", 4 how many at most
-- Returns   {} when there was too much to clear away first: ask again
--           {epoch, offset, nonce, more (0 or 1), payloads in the order of reading, amendments}
-- Work      as many entries as are asked for, and one; makes a channel that is new

local at = place(KEYS[1])
local here = freshen(at, {seed = ARGV[1], count = 0})
if not here then
  return {}
end
local limit = tonumber(ARGV[4])
local found
if ARGV[2] == "after" then
  found = redis.call("ZRANGE", key(at, "h"), "(" .. ARGV[3], "+inf",
    "BYSCORE", "LIMIT", 0, limit + 1, "WITHSCORES")
else
  found = redis.call("ZRANGE", key(at, "h"), ARGV[3], "-inf",
    "BYSCORE", "REV", "LIMIT", 0, limit + 1, "WITHSCORES")
end
local more = #found > 2 * limit
if more then
  table.remove(found)
  table.remove(found)
end
return {here.epoch, here.offset, here.nonce, more and 1 or 0, payloads(found), amendments(at, found)}
