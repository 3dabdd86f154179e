"""Where a request is sent."""
