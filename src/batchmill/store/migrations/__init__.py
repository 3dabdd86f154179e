"""The versions of the tables, oldest first; one file a version."""
