-- Moves a device's cursor, and registers the device.
--
-- KEYS[1]   meta key
-- ARGV      1 device, 2 offset, 3 how many devices there may be
-- Returns   {where the cursor stands, end of the stream}
-- Work      in proportion to the devices

local at = stand(KEYS[1])
local cursor = at.furthest
local list = {}
for index = 1, #at.devices, 2 do
  if at.devices[index] == ARGV[1] then
    cursor = at.devices[index + 1]
  else
    list[#list + 1] = at.devices[index]
    list[#list + 1] = at.devices[index + 1]
  end
end
cursor = math.max(cursor, math.min(tonumber(ARGV[2]), at.offset))
list[#list + 1] = ARGV[1]
list[#list + 1] = cursor
while #list > 2 * tonumber(ARGV[3]) do
  table.remove(list, 1)
  table.remove(list, 1)
end
local furthest = text(math.max(at.furthest, cursor))
redis.call("HSET", at.meta, "e", text(at.offset), "f", furthest, "c", cmsgpack.pack(list))
keep_meta(at)
return {cursor, at.offset}
