"""A server for the client's tests that answers as it is told to."""

from collections.abc import AsyncIterator

import pytest_asyncio

from batchmill.client.http import Client
from client.odd import Odd, odd_server


@pytest_asyncio.fixture
async def server() -> AsyncIterator[tuple[Odd, Client]]:
    """Yield a server and a client of it."""
    async with odd_server() as both:
        yield both
