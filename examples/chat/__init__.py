"""A chat with rooms: `app.py` is the server, `static/` the page."""
