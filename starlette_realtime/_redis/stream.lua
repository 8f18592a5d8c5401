-- A channel's stream. Stands before every script that publishes or reads.
--
-- Guarantees, since a script is one step for everybody else:
--   * the kept publications of a channel have the offsets 1, 2, 3 … within an epoch, over both lanes;
--   * what is announced is, byte for byte, what is kept;
--   * "t" of the meta hash is the highest offset that was ever taken out of a lane: whoever has seen
--     as much finds all that follows;
--   * a lost meta hash makes a new epoch and an empty stream; a lost lane counts as taken out.
-- All keys are made from the meta key and share its hash tag. Work is bounded: BATCH entries leave a
-- lane in one call.
--
-- The meta hash: e epoch, o offset, n nonce of the last publication, t (above), h and p last offset
-- of each lane; a age in ms, s size and r presence size that were last published with. It outlives
-- the lanes by META_SECONDS at least.

local BATCH = 512
local META_SECONDS = 7 * 86400

local HISTORY, PRESENCE = 1, 2
local LANES = {[HISTORY] = "h", [PRESENCE] = "p"}

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

-- Random digits: those of the caller for the first publication of a script, then made from them.
local function digits(chance)
  chance.count = chance.count + 1
  if chance.count == 1 then
    return string.sub(chance.seed, 1, 8)
  end
  return string.sub(redis.sha1hex(chance.seed .. chance.count), 1, 8)
end

local function candidate(chance)
  return string.sub(redis.sha1hex("epoch" .. chance.seed .. chance.count), 1, 8)
end

-- The parts of a meta key.
local function place(meta)
  local head, channel = string.match(meta, "^(.-}:)m:(.*)$")
  return {meta = meta, head = head, channel = channel}
end

local function key(at, kind)
  return at.head .. kind .. ":" .. at.channel
end

local function drop_lanes(at)
  redis.call("DEL", key(at, "h"), key(at, "p"), key(at, "x"), key(at, "a"))
end

-- Where the stream stands. `make` a new one if there is none, and let it live on.
local function stand(at, chance, make)
  local found = redis.call("HMGET", at.meta, "e", "o", "n", "t", "h", "p", "a", "s", "r")
  local here = {
    epoch = found[1],
    offset = tonumber(found[2] or 0),
    nonce = found[3] or "",
    trimmed = tonumber(found[4] or 0),
    last = {[HISTORY] = tonumber(found[5] or 0), [PRESENCE] = tonumber(found[6] or 0)},
    age = tonumber(found[7] or 0),
    size = tonumber(found[8] or -1),
    presence = tonumber(found[9] or -1),
  }
  if not here.epoch and make then
    here.epoch = candidate(chance)
    -- First of all writes, so that a server without memory refuses before anything has changed.
    redis.call("HSET", at.meta, "e", here.epoch, "o", "0")
    redis.call("EXPIRE", at.meta, META_SECONDS)
    drop_lanes(at)
  end
  return here
end

local function keep_meta(at, age)
  redis.call("EXPIRE", at.meta, math.max(META_SECONDS, math.ceil(2 * age / 1000)))
end

-- A lane is a sorted set of entries by offset. (A Redis stream would do as well, but takes 4 KB for
-- the first entry, which is too much for many small rooms.) An entry: when it was kept (ms), its id,
-- its payload.
local function entry_with(time, id, payload)
  return struct.pack(">I8I2", time, #id) .. id .. payload
end

local function time_of(entry)
  return (struct.unpack(">I8", entry))
end

local function id_of(entry)
  local length, from = struct.unpack(">I2", entry, 9)
  return string.sub(entry, from, from + length - 1)
end

local function payload_of(entry)
  local length, from = struct.unpack(">I2", entry, 9)
  return string.sub(entry, from + length)
end

-- Take out of a lane what is too many or was kept before `oldest` (ms), at most BATCH; return whether
-- that was all. The caller writes `here.trimmed` down.
local function evict(at, here, lane, excess, oldest)
  local entries = key(at, LANES[lane])
  -- Those that are too many and the one after them, which mostly stays. Else entries are read by ones,
  -- twos, fours … lest many are for nothing.
  local step, removed, last, more = math.max(1, math.min(64, excess + 1)), 0, nil, true
  while more and removed < BATCH do
    local found = redis.call("ZRANGE", entries, removed, removed + step - 1, "WITHSCORES")
    more = #found == 2 * step
    for index = 1, #found, 2 do
      local entry, offset = found[index], found[index + 1]
      if excess <= 0 and time_of(entry) >= oldest then
        more = false
        break
      end
      excess = excess - 1
      removed = removed + 1
      last = tonumber(offset)
      if lane == HISTORY then
        local id = id_of(entry)
        if id ~= "" and redis.call("HGET", key(at, "x"), id) == offset then
          redis.call("HDEL", key(at, "x"), id)
        end
        redis.call("HDEL", key(at, "a"), offset)
      end
    end
    step = removed > 1 and math.min(64, step * 2) or 1
  end
  if last then
    redis.call("ZREMRANGEBYRANK", entries, 0, removed - 1)
    here.trimmed = math.max(here.trimmed, last)
  end
  return not more
end

local function number(value)
  return struct.pack(">BI8", 0xcf, value)
end

local function short(value)
  return string.char(0xa0 + #value) .. value
end

-- Tell the subscribers. `announcements`: kind of the Redis channel of each channel, or "" for one per
-- partition (Cluster), which then carries the name too.
local function announce(at, announcements, payload)
  if announcements == "" then
    local framed = struct.pack(">I4", #at.channel) .. at.channel .. payload
    redis.call("SPUBLISH", at.head .. "c", framed)
  else
    redis.call("PUBLISH", at.head .. announcements .. at.channel, payload)
  end
end

-- A draft and a retention as keys.py writes them, from list[first] on.
local function draft_at(list, first)
  return {
    front = list[first],
    back = list[first + 1],
    lane = tonumber(list[first + 2]),
    id = list[first + 3],
    amends = list[first + 4],
    amended = list[first + 5],
    time = tonumber(list[first + 6]),
    expects = list[first + 7],
  }
end

-- With a negative size: as the stream was last published with, else as the rest says.
local function retention_at(list, first)
  return {
    size = tonumber(list[first]),
    age = tonumber(list[first + 1]),
    presence = tonumber(list[first + 2]),
  }
end

-- The payload that a publication has inside of what is kept: after the header of the array comes the
-- event, a string, and then the payload, binary (msgpack, as msgspec writes it).
local function data_of(payload)
  local tag, from = string.byte(payload, 2), nil
  if tag < 0xd9 then
    from = 3 + tag - 0xa0
  elseif tag == 0xd9 then
    from = 4 + string.byte(payload, 3)
  elseif tag == 0xda then
    from = 5 + struct.unpack(">I2", payload, 3)
  else
    from = 7 + struct.unpack(">I4", payload, 3)
  end
  local width = ({[0xc4] = 1, [0xc5] = 2, [0xc6] = 4})[string.byte(payload, from)]
  local length = struct.unpack(">I" .. width, payload, from + 1)
  return string.sub(payload, from + 1 + width, from + width + length)
end

-- What the history lane keeps under an id since `oldest` (ms): its offset as text, its entry, and
-- what amends it (false for nothing). Nothing when there is none.
local function kept_under(at, id, oldest)
  local offset = id ~= "" and redis.call("HGET", key(at, "x"), id)
  if offset then
    local entry = redis.call("ZRANGE", key(at, "h"), offset, offset, "BYSCORE")[1]
    if entry and time_of(entry) >= oldest then
      return offset, entry, redis.call("HGET", key(at, "a"), offset)
    end
  end
end

-- One publication. `known`: under which key its result is remembered, and for how many ms; nil for
-- not at all. `touch`: write something even when it is a duplicate, so that a WAIT that follows on
-- this connection waits for what was published before. Returns {outcome, offset, epoch, nonce}:
-- outcome 0 for done, 1 for a duplicate, 2 for a conflict, which changes nothing.
local function publish(at, draft, retention, announcements, chance, known, lifetime, touch)
  if known then
    local seen = redis.call("GET", known)
    if seen then
      if touch then
        redis.call("PEXPIRE", known, lifetime)
      end
      local offset, epoch, nonce = string.match(seen, "^(%d+):([^:]*):([^:]*)$")
      return {1, tonumber(offset), epoch, nonce}
    end
  end
  if retention.size < 0 then
    local here = stand(at, chance, false)
    local known = here.epoch and here.size >= 0
    retention = {
      size = known and here.size or -1 - retention.size,
      age = known and here.age or retention.age,
      presence = known and here.presence or retention.presence,
    }
  end
  if draft.expects ~= "" then
    local _, entry, amended = kept_under(at, draft.amends, now() - retention.age)
    if not entry or (amended or data_of(payload_of(entry))) ~= draft.expects then
      local here = stand(at, chance, true)
      return {2, here.offset, here.epoch, here.nonce}
    end
  end
  local kept = LANES[draft.lane]
  local offset, epoch, nonce, previous = 0, "", "", ""
  if kept then
    local here = stand(at, chance, false)
    if not here.epoch then
      here = stand(at, chance, true)
    end
    epoch, previous = here.epoch, here.nonce
    offset = here.offset + 1
    nonce = digits(chance)
    local size = draft.lane == HISTORY and retention.size or retention.presence
    local entries = key(at, kept)
    local length = redis.call("ZCARD", entries)
    if length == 0 and here.last[draft.lane] > here.trimmed then
      -- The lane has gone with its time, or with the server's memory.
      here.trimmed = here.last[draft.lane]
    end
    evict(at, here, draft.lane, length + 1 - size, now() - retention.age)
    draft.payload = table.concat({
      "\156", draft.front, number(offset), short(epoch), draft.back,
      number(draft.time > 0 and draft.time or now()), short(nonce), short(previous),
    })
    if size > 0 then
      redis.call("ZADD", entries, text(offset), entry_with(now(), draft.id, draft.payload))
      redis.call("PEXPIRE", entries, retention.age)
      if draft.lane == HISTORY then
        if draft.id ~= "" then
          redis.call("HSET", key(at, "x"), draft.id, text(offset))
        end
        redis.call("PEXPIRE", key(at, "x"), retention.age)
        redis.call("PEXPIRE", key(at, "a"), retention.age)
      end
    else
      here.trimmed = offset
    end
    redis.call("HSET", at.meta, "e", epoch, "o", text(offset), "n", nonce, "t", text(here.trimmed),
      kept, text(offset), "a", text(retention.age), "s", text(retention.size),
      "r", text(retention.presence))
    keep_meta(at, retention.age)
  else
    draft.payload = table.concat({
      "\156", draft.front, number(0), short(""), draft.back,
      number(draft.time > 0 and draft.time or now()), short(""), short(""),
    })
  end
  if draft.amends ~= "" then
    local target = kept_under(at, draft.amends, now() - retention.age)
    if target then
      redis.call("HSET", key(at, "a"), target, draft.amended)
      redis.call("PEXPIRE", key(at, "a"), redis.call("PTTL", key(at, "h")))
    end
  end
  announce(at, announcements, draft.payload)
  if known then
    redis.call("SET", known, text(offset) .. ":" .. epoch .. ":" .. nonce, "PX", lifetime)
  end
  return {0, offset, epoch, nonce}
end

-- For reading: where the stream stands, without what is too old. Returns nil when there was more to
-- take out than one call may: the caller asks again.
local function freshen(at, chance)
  local here = stand(at, chance, true)
  keep_meta(at, here.age)
  local whole, trimmed = true, here.trimmed
  for lane, kind in ipairs(LANES) do
    if here.last[lane] > 0 then
      whole = evict(at, here, lane, 0, now() - here.age) and whole
      if here.last[lane] > here.trimmed and redis.call("EXISTS", key(at, kind)) == 0 then
        here.trimmed = here.last[lane]
      end
    end
  end
  if here.trimmed > trimmed then
    redis.call("HSET", at.meta, "t", text(here.trimmed))
  end
  if whole then
    return here
  end
end

-- Entries that ZRANGE … WITHSCORES found: their payloads, and for the history lane what amends them
-- (false for nothing).
local function payloads(found)
  local list = {}
  for index = 1, #found, 2 do
    list[#list + 1] = payload_of(found[index])
  end
  return list
end

local function amendments(at, found)
  local list = {}
  local any = #found > 0 and redis.call("EXISTS", key(at, "a")) == 1
  for index = 2, #found, 2 do
    list[#list + 1] = any and redis.call("HGET", key(at, "a"), found[index])
  end
  return list
end
