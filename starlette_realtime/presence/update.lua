-- Changes what a lease shows of its user, and makes it the one that is shown.
--
-- KEYS[1]   meta key
-- ARGV      1 session, 2 "1" if there is an info, 3 info, 4 "1" if there is a status, 5 status
-- Returns   1 if there is such a lease, else 0
-- Work      in proportion to the user's sessions here

local at = place(KEYS[1])
local session = ARGV[1]
local lease = lease_of(at, session)
if not lease then
  return 0
end
if ARGV[2] == "1" then
  lease[2] = ARGV[3]
end
if ARGV[4] == "1" then
  lease[3] = ARGV[5]
end
local list = sessions_of(at, lease[1])
without(list, session)
list[#list + 1] = session
redis.call("HSET", key(at, "w"), lease[1], cmsgpack.pack(list))
redis.call("HSET", key(at, "d"), session, cmsgpack.pack(lease))
return 1
