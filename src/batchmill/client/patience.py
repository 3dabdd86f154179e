"""How long a server that is away is waited for by what has begun: it may be restarted."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from batchmill.client.failure import Failed
from batchmill.client.http import Client

T = TypeVar("T")

_PATIENCE = 900.0  # seconds without a sign of life
_PAUSE = 1.0  # seconds between two tries, each of which is patient itself


class Patience:
    """Waits through an outage, and gives up when it lasts too long; at once if the server has never been there."""

    def __init__(
        self,
        client: Client,
        *,
        say: Callable[[str], None],
        seconds: float = _PATIENCE,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._client, self._say, self._seconds, self._sleep = client, say, seconds, sleep
        self._since: float | None = None

    def there(self) -> None:
        """Note that the server is there."""
        self._since = None

    async def through(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what a call returns, however often it has to be made."""
        while True:
            try:
                found = await call()
            except Failed as fault:
                await self.wait(fault)
            else:
                self.there()
                return found

    async def wait(self, fault: Failed) -> None:
        """Wait before the next try.

        Raises:
            Failed: no waiting ends it, or it has lasted too long.
        """
        now = time.monotonic()
        if not (fault.may_pass and self._client.has_answered):
            raise fault
        if self._since is None:
            self._since = now
            self._say(f"{fault} Waiting until it is back.")
        elif now - self._since > self._seconds:
            raise fault
        await self._sleep(_PAUSE)
