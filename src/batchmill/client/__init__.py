"""A client of the public API, ours or another service's: calls, streams, and what one who waits is shown."""
