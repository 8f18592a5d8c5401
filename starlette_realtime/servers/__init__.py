"""Server integrations: a direct way to the socket."""
