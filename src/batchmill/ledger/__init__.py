"""Slices and Segments: the one place that ties rows to bytes."""
