-- Gives or renews a lease, and publishes the arrival if it is the user's first.
--
-- KEYS[1]   meta key
-- ARGV      1 session, 2 user, 3 info, 4 status, 5 time to live (ms), 6 announcements,
--           7 random digits, 8-10 retention, 11 "1" if there is an arrival, 12-19 arrival,
--           20 "1" if there is a departure, 21-28 departure
-- Returns   1 if it was the user's first lease here, else 0
-- Work      in proportion to the user's sessions here

local at = place(KEYS[1])
local session, user, announcements = ARGV[1], ARGV[2], ARGV[6]
local chance = {seed = ARGV[7], count = 0}
local former = lease_of(at, session)
if former and former[1] ~= user then
  finish(at, session, former[1], announcements, chance)
end
local list = sessions_of(at, user)
local first = not list
if first then
  list = {""}
  if ARGV[11] == "1" then
    local draft = draft_at(ARGV, 12)
    publish(at, draft, retention_at(ARGV, 8), announcements, chance)
  end
else
  without(list, session)
end
list[#list + 1] = session
if ARGV[20] == "1" then
  local departure = {}
  for index = 21, 28 do
    departure[#departure + 1] = ARGV[index]
  end
  for index = 8, 10 do
    departure[#departure + 1] = ARGV[index]
  end
  list[1] = cmsgpack.pack(departure)
end
local ends = now() + tonumber(ARGV[5])
redis.call("HSET", key(at, "w"), user, cmsgpack.pack(list))
redis.call("HSET", key(at, "d"), session, cmsgpack.pack({user, ARGV[3], ARGV[4]}))
redis.call("ZADD", key(at, "l"), text(ends), session)
redis.call("ZADD", ends_key(at), "LT", text(ends), at.channel)
if first then
  redis.call("ZADD", key(at, "u"), 0, user)
end
return first and 1 or 0
