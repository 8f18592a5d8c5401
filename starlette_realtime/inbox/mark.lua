-- Marks what somebody wrote in a conversation as read.
--
-- KEYS[1]   meta key
-- ARGV      1 peer, 2 author, 3 offset through which, 4 digits: the same ones, the same answer
-- Returns   {entry, 1} of the newest that this marked, or {} if there is none
-- Work      in proportion to the conversation

local at = stand(KEYS[1])
if expire(at) then
  return false
end
local side = ARGV[2] == at.owner and MINE or ARGV[2] == ARGV[1] and OTHERS
if not side then
  return {}
end
local marked, digits = mark_of(at, ARGV[1], side)
if digits == ARGV[4] then
  local entry = entry_at(at, text(marked))
  return entry and {entry, 1} or {}
end
local whose = conversation(ARGV[1])
local past = whose .. struct.pack(">I8", tonumber(ARGV[3]) + 1)
while true do
  local chunk = redis.call(
    "ZRANGE", key(at, "yp"), "(" .. past, "[" .. whose, "BYLEX", "REV", "LIMIT", 0, CHUNK
  )
  for _, member in ipairs(chunk) do
    local offset, wrote = of_index(member)
    if offset <= marked then
      return {}
    end
    if wrote == side then
      local entry = entry_at(at, text(offset))
      if entry then
        local life = redis.call("PTTL", key(at, "yl"))
        local mark = struct.pack(">I8", offset) .. ARGV[4]
        redis.call("HSET", key(at, "yr"), side .. ARGV[1], mark)
        redis.call("PEXPIRE", key(at, "yr"), life)
        return {entry, 1}
      end
    end
    past = member
  end
  if #chunk < CHUNK then
    return {}
  end
end
