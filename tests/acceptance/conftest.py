"""Where the acceptance tests run, reported by name: on SQLite with a disk, and on PostgreSQL with a bucket."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.serving import Processes, processes_in
from acceptance.shared import shared_installation
from bucket import bucket_of
from postgres import cluster_of
from storage import STORAGES


@pytest.fixture(params=STORAGES)
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Processes]:
    """Processes of one installation, in sessions of their own, all of which end with the test."""
    if request.param == "sqlite+disk":
        with processes_in(tmp_path) as started:
            yield started
        return
    cluster, bucket = cluster_of(request.config), bucket_of(request.config)
    with shared_installation(cluster, bucket) as shared, processes_in(tmp_path, shared) as started:
        yield started
