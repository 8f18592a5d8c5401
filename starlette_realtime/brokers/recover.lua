-- Reads what follows an offset, in both lanes, as of one moment.
--
-- KEYS[1]   meta key
-- ARGV      1 random digits, 2 epoch, 3 offset (-1 for none that ever was), 4 how many at most
-- Returns   {} when there was too much to clear away first: ask again
--           {epoch, offset, nonce, 0}: it cannot be told
--           {epoch, offset, nonce, 1, reached, history, amendments, presence}: what follows up to
--           the offset `reached`; from there the caller goes on, if it is not the end
-- Work      about BYTES of payloads and WINDOW offsets at a time; makes a channel that is new

local BYTES, WINDOW = 4000000, 100

local at = place(KEYS[1])
local here = freshen(at, {seed = ARGV[1], count = 0})
if not here then
  return {}
end
local since = tonumber(ARGV[3])
if ARGV[2] ~= here.epoch or since < here.trimmed or since > here.offset
  or here.offset - since > tonumber(ARGV[4]) then
  return {here.epoch, here.offset, here.nonce, 0}
end
local history, amended, presence = {}, {}, {}
local size = 0
while since < here.offset and size < BYTES do
  local first, last = text(since + 1), text(math.min(since + WINDOW, here.offset))
  local found = redis.call("ZRANGE", key(at, "h"), first, last, "BYSCORE", "WITHSCORES")
  local changes = amendments(at, found)
  for index, payload in ipairs(payloads(found)) do
    history[#history + 1] = payload
    amended[#history] = changes[index]
    size = size + #payload
  end
  found = redis.call("ZRANGE", key(at, "p"), first, last, "BYSCORE", "WITHSCORES")
  for _, payload in ipairs(payloads(found)) do
    presence[#presence + 1] = payload
    size = size + #payload
  end
  since = tonumber(last)
end
return {here.epoch, here.offset, here.nonce, 1, since, history, amended, presence}
