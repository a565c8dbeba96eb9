"""The page, and the HTTP API under it, in the server's own process."""
