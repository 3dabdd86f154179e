"""The bytes, by key."""
