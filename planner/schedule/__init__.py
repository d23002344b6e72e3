"""Pipeline schedules: the order of operations on every rank, and the timeline that order gives."""
