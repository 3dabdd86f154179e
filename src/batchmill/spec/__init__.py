"""The Batch API itself, pure: objects, states, lines, errors, limits, windows."""
