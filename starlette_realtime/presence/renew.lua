-- Lets leases end later, or sooner.
--
-- KEYS      meta keys of different channels, all of one slot in a Cluster
-- ARGV      1 time to live (ms), then for each channel: the number of sessions, and the sessions
-- Returns   the places (from 1, over all channels) of the sessions that have no lease
-- Work      a fixed number of commands for each session

local ends = text(now() + tonumber(ARGV[1]))
local gone, asked, index = {}, 0, 2
for _, meta in ipairs(KEYS) do
  local at = place(meta)
  local renewed = false
  for offset = 1, tonumber(ARGV[index]) do
    local session = ARGV[index + offset]
    asked = asked + 1
    if redis.call("ZSCORE", key(at, "l"), session) then
      redis.call("ZADD", key(at, "l"), ends, session)
      renewed = true
    else
      gone[#gone + 1] = asked
    end
  end
  if renewed then
    redis.call("ZADD", ends_key(at), "LT", ends, at.channel)
  end
  index = index + 1 + tonumber(ARGV[index])
end
return gone
