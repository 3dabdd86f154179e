"""What the tests of the API start with."""

import asyncio
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from api.served import Served, Tenant
from batchmill.spec.limits import KIMI
from bucket import bucket_of
from postgres import cluster_of
from storage import STORAGES


@pytest.fixture(scope="session", params=STORAGES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run one API on each storage for all tests; each has an organisation of its own, and all have one address."""
    limits, folder = replace(KIMI, failed_auth_per_minute=None), tmp_path_factory.mktemp("api")
    if request.param == "sqlite+disk":
        with closing(Served(folder, limits=limits)) as served:
            yield served
        return
    url = asyncio.run(cluster_of(request.config).new_database())
    blobs = bucket_of(request.config).blobs(folder)
    with closing(Served(folder, limits=limits, postgres=url, migrated=False, blobs=blobs)) as served:
        yield served


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """Collect what the server logs during a test."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def tenant(served: Served) -> Tenant:
    """Make a new organisation."""
    return served.tenant()


@pytest.fixture
def other(served: Served) -> Tenant:
    """Make another organisation."""
    return served.tenant()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Run an API with settings of a test's own; the arguments are those of `Served`."""
    with ExitStack() as stack:

        def start(**settings: object) -> Served:
            return stack.enter_context(closing(Served(tmp_path, **settings)))

        yield start
