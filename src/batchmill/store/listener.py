"""Hears PostgreSQL's notifications over a connection of its own; while it cannot, time that passes counts as one."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import structlog

CHANNEL = "batchmill"

_DEAF_SECONDS = 1.0  # how often who listens in vain is told to look
_ALIVE_SECONDS = 5.0  # how often the server is asked whether it is there, and for how long
_AGAIN_SECONDS = 1.0  # between two connections


class Listener:
    """Counts notifications. The count only saves waiting: whoever sees it differ looks at the rows."""

    def __init__(self, *, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        self._connect = connect
        self._heard = 0
        self._hears = False
        self._counted_at = float("-inf")
        self._listening: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("store")

    def start(self) -> None:
        """Begin to listen, at the first call."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())

    def version(self) -> int:
        """Return a number that differs after each notification, and once a second while none can be heard."""
        now = asyncio.get_running_loop().time()
        if not self._hears and now >= self._counted_at + _DEAF_SECONDS:
            self._counted_at = now
            self._heard += 1
        return self._heard

    async def close(self) -> None:
        """End the connection."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
            self._listening = None

    async def _listen(self) -> None:
        while True:
            try:
                await self._hear(await self._connect())
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as fault:  # TimeoutError is an OSError
                if self._hears:
                    self._log.warning("not notified any more: the rows are looked at", reason=str(fault))
            self._hears = False
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _hear(self, connection: asyncpg.Connection) -> None:
        """Listen until the connection is lost."""
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _connection: lost.set())
            await connection.add_listener(CHANNEL, self._ring)
            self._hears = True
            self._heard += 1  # what was said before
            while not lost.is_set():
                await asyncio.wait([waiting := asyncio.ensure_future(lost.wait())], timeout=_ALIVE_SECONDS)
                waiting.cancel()
                await connection.execute("SELECT", timeout=_ALIVE_SECONDS)
        finally:
            connection.terminate()

    def _ring(self, *_said: object) -> None:
        self._heard += 1
