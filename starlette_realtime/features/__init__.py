"""Features: what can be added to a kind of room. Each uses public pieces only, and so is an example of
how to write one."""
