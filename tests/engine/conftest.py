"""What the tests of the engine start with."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.mill import Mill


@pytest.fixture
async def mill(tmp_path: Path) -> AsyncIterator[Mill]:
    """An empty mill on a real database and disk."""
    made = await Mill.build(tmp_path)
    yield made
    await made.database.close()
