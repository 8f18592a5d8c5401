"""Features: what can be added to a kind of room, or to a namespace. Each uses public pieces only,
and so is an example of how to write one."""
