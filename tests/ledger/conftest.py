"""What the tests of the ledger start with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from batchmill.blobs.blobs import Blobs
from batchmill.blobs.disk import DiskBlobs
from batchmill.ledger.ledger import Ledger
from batchmill.store.database import Database
from batchmill.telemetry import Metrics
from fakeclock import FakeClock
from postgres import clock, database
from store.rows import LEASE

__all__ = ["clock", "database"]


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """Bytes on the disk."""
    return DiskBlobs(folder=tmp_path / "blobs")


@pytest.fixture
def ledger_of(database: Database, blobs: Blobs, clock: FakeClock) -> Callable[..., Ledger]:
    """Make the ledger of a worker."""

    def make(worker_id: str = "w1", *, lease: float = LEASE) -> Ledger:
        return Ledger(database=database, blobs=blobs, clock=clock, worker_id=worker_id, lease=lease, metrics=Metrics())

    return make


@pytest.fixture
def ledger(ledger_of: Callable[..., Ledger]) -> Ledger:
    """The ledger of one worker."""
    return ledger_of()
