"""How long a server that is away is waited for by what has begun: it may be restarted."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from batchmill.client.failure import Unreachable

_PATIENCE = 900.0  # seconds without a sign of life
_PAUSE = 1.0  # seconds between two tries, each of which is patient itself


class Patience:
    """Waits through an outage, and gives up when it lasts too long."""

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        seconds: float = _PATIENCE,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._say, self._seconds, self._sleep = say, seconds, sleep
        self._since: float | None = None

    def there(self) -> None:
        """Note that the server is there."""
        self._since = None

    async def wait(self, fault: Unreachable) -> None:
        """Wait before the next try.

        Raises:
            Unreachable: it has been away for too long.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._say(f"{fault} Waiting until it is back.")
        elif now - self._since > self._seconds:
            raise fault
        await self._sleep(_PAUSE)
