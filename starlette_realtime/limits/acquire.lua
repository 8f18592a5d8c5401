-- Makes somebody one of the holders of a key.
--
-- KEYS[1]   holders: sorted set, by the end of their time (ms)
-- ARGV      1 holder, 2 how many there may be, 3 time to live (ms)
-- Returns   1 if it is one now, else 0
-- Work      in proportion to those whose time is over

local time = redis.call("TIME")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local limit, life = tonumber(ARGV[2]), tonumber(ARGV[3])
if not redis.call("ZSCORE", KEYS[1], ARGV[1]) and redis.call("ZCARD", KEYS[1]) >= limit then
  redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", string.format("%.0f", now))
  if redis.call("ZCARD", KEYS[1]) >= limit then
    return 0
  end
end
redis.call("ZADD", KEYS[1], string.format("%.0f", now + life), ARGV[1])
if redis.call("PTTL", KEYS[1]) < life then
  redis.call("PEXPIRE", KEYS[1], life)
end
return 1
