-- Reads on from an offset.
--
-- KEYS[1]   meta key
-- ARGV      1 offset, 2 limit
-- Returns   {1 if there are more, entry, 1 if it is read, entry, …}
-- Work      in proportion to the page

local at = stand(KEYS[1])
if expire(at) then
  return false
end
local limit, from = tonumber(ARGV[2]), ARGV[1]
local page, answer = {count = 0, bytes = 0}, {0}
while true do
  local chunk = redis.call(
    "ZRANGE", key(at, "yl"), "(" .. from, "+inf", "BYSCORE", "LIMIT", 0, CHUNK
  )
  for _, entry in ipairs(chunk) do
    if page.count == limit or not fits(page, entry) then
      answer[1] = 1
      return answer
    end
    page.count, page.bytes = page.count + 1, page.bytes + #entry
    answer[#answer + 1] = entry
    answer[#answer + 1] = is_read(at, entry)
    from = text((struct.unpack(">I8", entry)))
  end
  if #chunk < CHUNK then
    return answer
  end
end
