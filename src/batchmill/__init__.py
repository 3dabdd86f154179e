"""Batchmill: a self-hosted Batch API server."""
