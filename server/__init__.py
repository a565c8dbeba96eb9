"""The coordinating server: schedules rounds, stores, aggregates, and shows what happens."""
