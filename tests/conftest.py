"""What tests start with that run the product as processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.serving import Processes, processes_in


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Processes in sessions of their own, all of which end with the test."""
    with processes_in(tmp_path) as started:
        yield started
