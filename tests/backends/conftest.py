"""What the tests of the backends start with."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.servers import Handler, RawServer, Script, Serve, ServeRaw, start_polite, start_raw
from batchmill.backends.transport import AiohttpTransport
from batchmill.backends.weights import default_cache_dir, find_or_fetch
from fakeclock import FakeClock


@pytest.fixture
async def serve_raw() -> AsyncIterator[ServeRaw]:
    """Start servers that run a script for each connection."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(script: Script) -> RawServer:
            return await start_raw(script, stack)

        yield start


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start aiohttp servers that answer every path with one handler."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(handler: Handler) -> str:
            return await start_polite(handler, stack)

        yield start


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


@pytest.fixture
async def transport(clock: FakeClock) -> AsyncIterator[AiohttpTransport]:
    """The transport under test, with a cap of 200,000 bytes a reply."""
    transport = AiohttpTransport(clock=clock, max_reply_bytes=200_000)
    yield transport
    await transport.close()


@pytest.fixture(scope="session")
def weights() -> Path:
    """The built-in model's weights, in the user's cache; fetched by pip the first time."""
    return find_or_fetch(default_cache_dir(), print)
