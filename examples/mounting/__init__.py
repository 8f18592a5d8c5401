"""Ways to add real-time rooms to an app, one small program each."""
