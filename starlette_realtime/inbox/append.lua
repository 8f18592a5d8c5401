-- Keeps a letter, once under its id, and trims.
--
-- KEYS[1]   meta key
-- ARGV      1 head, 2 rest of the entry, 3 size, 4 size of a conversation, 5 age (ms)
-- Returns   {"new", entry}; {"kept", entry, 1 if it is read}; {"gone", head}
-- Work      in proportion to what is dropped, at most BATCH for each reason

local at = stand(KEYS[1])
local size, per_peer = tonumber(ARGV[3]), tonumber(ARGV[4])
at.age = tonumber(ARGV[5])
if expire(at) then
  return false
end
local id, sender, target = unpack(cmsgpack.unpack(ARGV[1]))
local known = redis.call("HGET", key(at, "yi"), id)
local kept = known and entry_at(at, known)
if kept then
  return {"kept", kept, is_read(at, kept)}
end
local gone = redis.call("HGET", key(at, "yh"), id)
if gone then
  return {"gone", gone}
end

local mine = sender == at.owner
local peer = mine and target or sender
local offset = at.offset + 1
local entry = struct.pack(">I8I8I4", offset, now(), #ARGV[1]) .. ARGV[1] .. ARGV[2]
redis.call("HSET", at.meta, "e", text(offset), "a", ARGV[5])
redis.call("ZADD", key(at, "yl"), text(offset), entry)
redis.call("HSET", key(at, "yi"), id, text(offset))
redis.call("ZADD", key(at, "yp"), 0, indexed(peer, offset, mine and MINE or OTHERS))

local whose = conversation(peer)
local first, past = "[" .. whose, "(" .. whose .. string.rep("\255", 9)
local surplus = math.min(redis.call("ZLEXCOUNT", key(at, "yp"), first, past) - per_peer, BATCH)
if surplus > 0 then
  local oldest = redis.call("ZRANGE", key(at, "yp"), first, past, "BYLEX", "LIMIT", 0, surplus)
  for _, member in ipairs(oldest) do
    local found = entry_at(at, text((of_index(member))))
    if found then
      drop(at, found)
    else
      redis.call("ZREM", key(at, "yp"), member)
    end
  end
end
surplus = math.min(redis.call("ZCARD", key(at, "yl")) - size, BATCH)
if surplus > 0 then
  for _, oldest in ipairs(redis.call("ZRANGE", key(at, "yl"), 0, surplus - 1)) do
    drop(at, oldest)
  end
end
surplus = math.min(redis.call("ZCARD", key(at, "yg")) - size, BATCH)
if surplus > 0 then
  for _, forgotten in ipairs(redis.call("ZRANGE", key(at, "yg"), 0, surplus - 1)) do
    redis.call("ZREM", key(at, "yg"), forgotten)
    redis.call("HDEL", key(at, "yh"), forgotten)
  end
end

keep_meta(at)
local life = text(math.max(at.age, REMEMBERED))
for _, kind in ipairs({"yl", "yi", "yp", "yg", "yh", "yr"}) do
  redis.call("PEXPIRE", key(at, kind), life)
end
return {"new", entry}
