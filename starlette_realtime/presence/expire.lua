-- Ends the leases whose time is over, whoever gave them, and publishes the departures. A lease that
-- was renewed in the meantime has another end, which is looked at here and not before.
--
-- KEYS      "ends" keys, all of one slot in a Cluster
-- ARGV      1 announcements, 2 random digits
-- Returns   {leases ended, 1 if there may be more, else 0}
-- Work      at most LEASES leases and CHANNELS channels

local LEASES, CHANNELS = 200, 1000

local chance = {seed = ARGV[2], count = 0}
local ended, looked = 0, 0
for _, ends in ipairs(KEYS) do
  local head = string.match(ends, "^(.*)ends$")
  local due = redis.call("ZRANGE", ends, "-inf", text(now()), "BYSCORE", "LIMIT", 0, CHANNELS - looked)
  for _, channel in ipairs(due) do
    local at = place(head .. "m:" .. channel)
    local over = redis.call(
      "ZRANGE", key(at, "l"), "-inf", text(now()), "BYSCORE", "LIMIT", 0, LEASES - ended)
    for _, session in ipairs(over) do
      local lease = lease_of(at, session)
      finish(at, session, lease[1], ARGV[1], chance)
      ended = ended + 1
    end
    reschedule(at)
    -- Whoever is here wants to find the stream again, however long nobody speaks.
    redis.call("EXPIRE", at.meta, META_SECONDS, "GT")
    looked = looked + 1
    if ended >= LEASES or looked >= CHANNELS then
      return {ended, 1}
    end
  end
end
return {ended, 0}
