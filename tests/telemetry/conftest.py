"""What the tests of the command line start with, beside processes."""

from bucket import bucket
from postgres import cluster

__all__ = ["bucket", "cluster"]
