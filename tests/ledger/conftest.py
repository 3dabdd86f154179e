"""What the tests of the ledger start with: the databases of the store's tests, and a folder of blobs."""

from pathlib import Path

import pytest

from batchmill.blobs.disk import DiskBlobs
from postgres import clock, cluster, database, empty_database

__all__ = ["blobs", "clock", "cluster", "database", "empty_database"]


@pytest.fixture
def blobs(tmp_path: Path) -> DiskBlobs:
    """An empty folder of blobs."""
    return DiskBlobs(folder=tmp_path / "blobs")
