-- Ends a lease now, and publishes the departure if it was the user's last.
--
-- KEYS[1]   meta key
-- ARGV      1 session, 2 announcements, 3 random digits
-- Returns   1 if it was the user's last lease here, else 0
-- Work      in proportion to the user's sessions here

local at = place(KEYS[1])
local lease = lease_of(at, ARGV[1])
if not lease then
  return 0
end
local last = finish(at, ARGV[1], lease[1], ARGV[2], {seed = ARGV[3], count = 0})
if redis.call("EXISTS", key(at, "l")) == 0 then
  redis.call("ZREM", ends_key(at), at.channel)
end
return last and 1 or 0
