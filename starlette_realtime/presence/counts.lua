-- Counts the users and sessions of a channel.
--
-- KEYS[1]   meta key
-- Returns   {users, sessions}

local at = place(KEYS[1])
return {redis.call("ZCARD", key(at, "u")), redis.call("ZCARD", key(at, "l"))}
