"""What the tests stand on: real servers, a wire-level client, a browser, a private Redis."""
