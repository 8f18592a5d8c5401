-- A user's stream of letters. Stands before every script of the inbox.
--
-- Guarantees, since a script is one step for everybody else:
--   * offsets go up by one and are in "e" of the meta hash, which outlives the letters;
--   * "yl" (letters), "yi" (offsets by id) and "yp" (conversations) always agree;
--   * an id is in "yi" while its letter is kept, then in "yg" and "yh" until REMEMBERED is over.
-- All keys are made from the meta key and share its hash tag. A lost meta hash forgets the devices,
-- but goes on behind the letters that are left. Work is bounded: BATCH letters are dropped in one
-- call, and a script that finds more to drop answers nothing, to be called again.
--
-- The meta hash: e end of the stream, f furthest offset that a device acknowledged, a age in ms that
-- was last appended with, c packed list of devices with their offsets, the one heard of last at the
-- end.
--
-- An entry: offset, when it was kept (ms), length of the head; the head, which is a packed list of
-- id, sender, target and time; the rest, which is the caller's.

local BATCH = 256
local CHUNK = 16
local PAGE_BYTES = 512 * 1024
local REMEMBERED = 600 * 1000
local META_MS = 90 * 86400 * 1000

local OTHERS, MINE = "o", "m"

local function text(number)
  -- Lua would write large numbers with an exponent.
  return string.format("%.0f", number)
end

local clock
local function now()
  if not clock then
    local time = redis.call("TIME")
    clock = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  end
  return clock
end

local function key(at, kind)
  return at.head .. kind .. ":" .. at.owner
end

-- A page is read up to this; what is first always fits.
local function fits(page, entry)
  return page.count == 0 or page.bytes + #entry <= PAGE_BYTES
end

local function parse(at, entry)
  local offset, kept, length, from = struct.unpack(">I8I8I4", entry)
  local head = string.sub(entry, from, from + length - 1)
  local id, sender, target = unpack(cmsgpack.unpack(head))
  local mine = sender == at.owner
  return {
    offset = offset,
    kept = kept,
    head = head,
    id = id,
    side = mine and MINE or OTHERS,
    peer = mine and target or sender,
  }
end

local function entry_at(at, offset)
  local found = redis.call("ZRANGE", key(at, "yl"), offset, offset, "BYSCORE", "LIMIT", 0, 1)
  return found[1]
end

-- Where a user's stream stands, by its meta key.
local function stand(meta)
  local head, owner = string.match(meta, "^(.-}:)y:(.*)$")
  local at = {meta = meta, head = head, owner = owner}
  local found = redis.call("HMGET", meta, "e", "f", "a", "c")
  at.offset = tonumber(found[1] or 0)
  if not found[1] then
    local last = redis.call("ZRANGE", key(at, "yl"), -1, -1, "WITHSCORES")
    at.offset = tonumber(last[2] or 0)
  end
  at.furthest = tonumber(found[2] or 0)
  at.age = tonumber(found[3] or math.huge)
  at.devices = found[4] and cmsgpack.unpack(found[4]) or {}
  return at
end

-- Conversations are in one sorted set, in the order of bytes: whose it is, then offset and side.
local function conversation(peer)
  return struct.pack(">I4", #peer) .. peer
end

local function indexed(peer, offset, side)
  return conversation(peer) .. struct.pack(">I8", offset) .. side
end

local function of_index(member)
  return struct.unpack(">I8", member, #member - 8), string.sub(member, -1)
end

-- Reading is a mark per conversation and side: up to where, and the digits of the call that set it.
local function mark_of(at, peer, side)
  local found = redis.call("HGET", key(at, "yr"), side .. peer)
  if not found then
    return 0
  end
  local offset, from = struct.unpack(">I8", found)
  return offset, string.sub(found, from)
end

local function is_read(at, entry)
  local letter = parse(at, entry)
  return letter.offset <= mark_of(at, letter.peer, letter.side) and 1 or 0
end

local function drop(at, entry)
  local letter = parse(at, entry)
  redis.call("ZREM", key(at, "yl"), entry)
  redis.call("ZREM", key(at, "yp"), indexed(letter.peer, letter.offset, letter.side))
  redis.call("HDEL", key(at, "yi"), letter.id)
  local whose = conversation(letter.peer)
  local past = whose .. string.rep("\255", 9)
  if redis.call("ZLEXCOUNT", key(at, "yp"), "[" .. whose, "(" .. past) == 0 then
    redis.call("HDEL", key(at, "yr"), MINE .. letter.peer, OTHERS .. letter.peer)
  end
  local ends = letter.kept + REMEMBERED
  if ends > now() then
    redis.call("ZADD", key(at, "yg"), text(ends), letter.id)
    redis.call("HSET", key(at, "yh"), letter.id, letter.head)
  end
end

-- Drop what is too old; return whether there is more of it.
local function expire(at)
  local past = now() - at.age
  local dropped = 0
  local old = true
  while old do
    old = false
    for _, entry in ipairs(redis.call("ZRANGE", key(at, "yl"), 0, CHUNK - 1)) do
      local _, kept = struct.unpack(">I8I8", entry)
      old = kept < past
      if not old then
        break
      end
      if dropped == BATCH then
        return true
      end
      drop(at, entry)
      dropped = dropped + 1
    end
  end
  local over = redis.call(
    "ZRANGE", key(at, "yg"), "-inf", text(now()), "BYSCORE", "LIMIT", 0, BATCH
  )
  if #over > 0 then
    redis.call("ZREM", key(at, "yg"), unpack(over))
    redis.call("HDEL", key(at, "yh"), unpack(over))
  end
  return #over == BATCH
end

local function keep_meta(at)
  local age = at.age < math.huge and at.age or 0
  redis.call("PEXPIRE", at.meta, text(math.max(META_MS, 2 * age)))
end
