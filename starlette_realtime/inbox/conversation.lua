-- Reads a conversation backwards.
--
-- KEYS[1]   meta key
-- ARGV      1 peer, 2 offset before which to begin, 3 limit
-- Returns   {1 if there are more, entry, 1 if it is read, entry, …}, the newest first
-- Work      in proportion to the page

local at = stand(KEYS[1])
if expire(at) then
  return false
end
local limit = tonumber(ARGV[3])
local whose = conversation(ARGV[1])
local past = whose .. struct.pack(">I8", tonumber(ARGV[2]))
local page, answer = {count = 0, bytes = 0}, {0}
while true do
  local chunk = redis.call(
    "ZRANGE", key(at, "yp"), "(" .. past, "[" .. whose, "BYLEX", "REV", "LIMIT", 0, CHUNK
  )
  for _, member in ipairs(chunk) do
    local entry = entry_at(at, text((of_index(member))))
    if entry then
      if page.count == limit or not fits(page, entry) then
        answer[1] = 1
        return answer
      end
      page.count, page.bytes = page.count + 1, page.bytes + #entry
      answer[#answer + 1] = entry
      answer[#answer + 1] = is_read(at, entry)
    end
    past = member
  end
  if #chunk < CHUNK then
    return answer
  end
end
