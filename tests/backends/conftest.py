"""What the tests of the backends start with."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from backends.servers import Handler, MakeTransport, RawServer, Script, Serve, ServeRaw, start_polite, start_raw
from batchmill.backends.aiohttp_transport import AiohttpTransport
from batchmill.backends.transport import Transport
from batchmill.backends.weights import default_cache_dir, find_or_fetch
from batchmill.backends.wire import WireTransport
from fakeclock import FakeClock


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The worker runs on uvloop: what sockets do there is tested there, too."""
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return loops if item.path.name in ("test_conformance.py", "test_transport.py") else {"asyncio": loops["asyncio"]}


@pytest.fixture
async def serve_raw() -> AsyncIterator[ServeRaw]:
    """Start servers that run a script for each connection."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(script: Script) -> RawServer:
            return await start_raw(script, stack)

        yield start


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for the name localhost, and no other, with its key behind it."""
    path, key = (tmp_path_factory.mktemp("tls") / name for name in ("localhost.pem", "key.pem"))
    order = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(path)]
    subprocess.run([*order.split(), *names], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


@pytest.fixture
async def serve_tls(certificate: Path) -> AsyncIterator[ServeRaw]:
    """Start servers that speak TLS and run a script for each connection."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with contextlib.AsyncExitStack() as stack:

        async def start(script: Script) -> RawServer:
            return await start_raw(script, stack, tls=context)

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
