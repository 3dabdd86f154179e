"""What the tests of the rows start with."""

from postgres import bouncer, clock, cluster, database, empty_database

__all__ = ["bouncer", "clock", "cluster", "database", "empty_database"]
