"""What the tests of the engine start with."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.mill import Mill
from fakeclock import FakeClock
from storage import STORAGES, storage_of


@pytest.fixture(params=STORAGES)
async def mill(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Mill]:
    """An empty mill on real storage."""
    clock = FakeClock()
    async with storage_of(request.param, request.config, tmp_path, clock) as storage:
        yield Mill(folder=tmp_path, database=storage.database, blobs=storage.blobs, clock=clock)
