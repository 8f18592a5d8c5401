-- Publishes one draft: looks its id up, gives the next offset, appends to the lane, takes out what is
-- too much, amends, announces and remembers the result. One step: all of it happens, or nothing.
--
-- KEYS[1]   meta key
-- KEYS[2]   key under which the result is remembered; "" is not a key, so it may be missing
-- ARGV      1-7 draft, 8-10 retention, 11 announcements, 12 random digits,
--           13 how long the result is remembered (ms), 14 "1": write even when it is a duplicate
-- Returns   {duplicate (0 or 1), offset, epoch, nonce}
-- Work      a fixed number of commands, and at most BATCH entries taken out

return publish(
  place(KEYS[1]), draft_at(ARGV, 1), retention_at(ARGV, 8), ARGV[11],
  {seed = ARGV[12], count = 0}, KEYS[2], ARGV[13], ARGV[14] == "1"
)
