"""What the tests of the rows start with."""

from postgres import clock, cluster, database, empty_database

__all__ = ["clock", "cluster", "database", "empty_database"]
