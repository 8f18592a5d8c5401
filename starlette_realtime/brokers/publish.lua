-- Publishes one draft: looks its id up, gives the next offset, appends to the lane, takes out what is
-- too much, amends, announces and remembers the result. One step: all of it happens, or nothing.
--
-- KEYS[1]   meta key
-- KEYS[2]   key under which the result is remembered, if it is to be
-- ARGV      1-8 draft, 9-11 retention, 12 announcements, 13 random digits,
--           14 how long the result is remembered (ms), 15 "1": write even when it is a duplicate
-- Returns   0 done, 1 duplicate, 2 conflict; offset, epoch, nonce: as one text with colons between,
--           since a client's parser pays for each part of an answer
-- Work      a fixed number of commands, and at most BATCH entries taken out

local outcome = publish(
  place(KEYS[1]), draft_at(ARGV, 1), retention_at(ARGV, 9), ARGV[12],
  {seed = ARGV[13], count = 0}, KEYS[2], ARGV[14], ARGV[15] == "1"
)
outcome[2] = text(outcome[2])
return table.concat(outcome, ":")
