"""Doors: how clients get in."""
