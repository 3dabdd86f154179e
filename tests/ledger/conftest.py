"""What the tests of the ledger start with."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from batchmill.blobs.blobs import Blobs
from batchmill.ledger.ledger import Ledger
from batchmill.store.database import Database
from batchmill.telemetry import Metrics
from fakeclock import FakeClock
from postgres import clock
from storage import STORAGES, Storage, storage_of
from store.rows import LEASE

__all__ = ["clock"]


@pytest.fixture(params=STORAGES)
async def storage(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Storage]:
    """Rows and bytes."""
    async with storage_of(request.param, request.config, tmp_path, clock) as given:
        yield given


@pytest.fixture
def database(storage: Storage) -> Database:
    """The rows."""
    return storage.database


@pytest.fixture
def blobs(storage: Storage) -> Blobs:
    """The bytes."""
    return storage.blobs


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
