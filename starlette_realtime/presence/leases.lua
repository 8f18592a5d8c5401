-- Leases of a channel. Stands before every script of presence, after stream.lua.
--
-- Guarantees: a user's first lease and the end of the last one are each noticed once, and what
-- announces them is published in the same step. "l" (ends), "d" (what leases show), "w" (sessions and
-- departure by user) and "u" (users, in order) always agree.
-- "ends" of the partition has each channel with leases, under a time (ms) at or before which its
-- first lease ends: never later, possibly earlier, since renewing leaves it.

-- A user's record in "w" is a packed list: the departure first ("" for none), then the sessions, the
-- one that entered or changed last at the end.
local function sessions_of(at, user)
  local packed = redis.call("HGET", key(at, "w"), user)
  return packed and cmsgpack.unpack(packed)
end

local function without(list, session)
  for index = 2, #list do
    if list[index] == session then
      table.remove(list, index)
      return
    end
  end
end

-- What a lease shows: {user, info, status}; nil when there is none.
local function lease_of(at, session)
  local packed = redis.call("HGET", key(at, "d"), session)
  return packed and cmsgpack.unpack(packed)
end

local function ends_key(at)
  return at.head .. "ends"
end

-- End a lease that is there; return whether it was its user's last. Publishes first: a server
-- without memory then refuses before anything has changed.
local function finish(at, session, user, announcements, chance)
  local list = sessions_of(at, user)
  local last = #list == 2
  if last and list[1] ~= "" then
    local departure = cmsgpack.unpack(list[1])
    local draft = draft_at(departure, 1)
    publish(at, draft, retention_at(departure, 9), announcements, chance)
  end
  redis.call("HDEL", key(at, "d"), session)
  redis.call("ZREM", key(at, "l"), session)
  if last then
    redis.call("HDEL", key(at, "w"), user)
    redis.call("ZREM", key(at, "u"), user)
  else
    without(list, session)
    redis.call("HSET", key(at, "w"), user, cmsgpack.pack(list))
  end
  return last
end

-- Note when the channel's first lease ends now.
local function reschedule(at)
  local first = redis.call("ZRANGE", key(at, "l"), 0, 0, "WITHSCORES")
  if first[2] then
    redis.call("ZADD", ends_key(at), first[2], at.channel)
  else
    redis.call("ZREM", ends_key(at), at.channel)
  end
end
