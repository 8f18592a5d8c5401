"""Wires: a protocol's codec with the framing of the doors that speak it, shared by all connections
of a kind."""
