"""What the tests of the backends start with."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.servers import Handler, MakeTransport, RawServer, Script, Serve, ServeRaw, start_polite, start_raw
from batchmill.backends.aiohttp_transport import AiohttpTransport
from batchmill.backends.transport import Transport
from batchmill.backends.weights import default_cache_dir, find_or_fetch
from batchmill.backends.wire import WireTransport
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


@pytest.fixture(params=[WireTransport, AiohttpTransport], ids=["own", "aiohttp"])
async def make_transport(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[MakeTransport]:
    """Make the transport under test: every one must pass every test."""
    made: list[Transport] = []

    def make(*, max_reply_bytes: int = 200_000, connect_timeout: float = 5.0) -> Transport:
        made.append(request.param(clock=clock, max_reply_bytes=max_reply_bytes, connect_timeout=connect_timeout))
        return made[-1]

    yield make
    for transport in made:
        await transport.close()


@pytest.fixture
def transport(make_transport: MakeTransport) -> Transport:
    """The transport under test, with a cap of 200,000 bytes a reply."""
    return make_transport()


@pytest.fixture(scope="session")
def weights() -> Path:
    """The built-in model's weights, in the user's cache; fetched by pip the first time."""
    return find_or_fetch(default_cache_dir(), print)
