-- Reads a page of the history lane.
--
-- KEYS[1]   meta key
-- ARGV      1 random digits, 2 "before" or "after", 3 offset that bounds it: exclusive for "after",
--           inclusive or "+" for "before", 4 how many at most
-- Returns   {} when there was too much to clear away first: ask again
--           {epoch, offset, nonce, more (0 or 1), payloads in the order of reading, amendments}
-- Work      as many entries as are asked for, and one; makes a channel that is new

local at = place(KEYS[1])
local here = freshen(at, {seed = ARGV[1], count = 0})
if not here then
  return {}
end
local limit = tonumber(ARGV[4])
local entries
if ARGV[2] == "after" then
  entries = redis.call("XRANGE", key(at, "h"), "(" .. ARGV[3] .. "-0", "+", "COUNT", limit + 1)
else
  entries = redis.call("XREVRANGE", key(at, "h"), ARGV[3], "-", "COUNT", limit + 1)
end
local more = #entries > limit
if more then
  table.remove(entries)
end
local changes = amendments(at, entries)
for index = 1, #entries do
  changes[index] = changes[index] or false
end
return {here.epoch, here.offset, here.nonce, more and 1 or 0, payloads(entries), changes}
