-- Reads a page of users, ordered by id, and the counts.
--
-- KEYS[1]   meta key
-- ARGV      1 user after whom the page starts ("" for the first page), 2 how many at most
-- Returns   {users, sessions, more (0 or 1), user, info, status, user, info, status, …}
-- Work      in proportion to the page

local at = place(KEYS[1])
local limit = tonumber(ARGV[2])
local from = ARGV[1] == "" and "-" or "(" .. ARGV[1]
local users = redis.call("ZRANGE", key(at, "u"), from, "+", "BYLEX", "LIMIT", 0, limit + 1)
local answer = {
  redis.call("ZCARD", key(at, "u")),
  redis.call("ZCARD", key(at, "l")),
  #users > limit and 1 or 0,
}
for index = 1, math.min(limit, #users) do
  local list = sessions_of(at, users[index])
  local lease = lease_of(at, list[#list])
  answer[#answer + 1] = users[index]
  answer[#answer + 1] = lease[2]
  answer[#answer + 1] = lease[3]
end
return answer
