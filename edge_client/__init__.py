"""The program of a device: joins a server, trains on its own data, sends what it learned."""
