"""A clock that stands still until a test moves it."""

import asyncio
import heapq
import itertools


class FakeClock:
    """`now` and `boot` are set by hand; `advance` wakes the sleepers whose time has come, in order."""

    def __init__(self, *, now: float = 1_800_000_000.0, boot: float = 1_000.0) -> None:
        """Start at the given moment, in seconds."""
        self.time = now
        self.uptime = boot
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._watching: asyncio.Future[None] | None = None

    def now(self) -> float:
        """Unix time in seconds, as the test set it."""
        return self.time

    def boot(self) -> float:
        """Seconds that never step, as the test set them."""
        return self.uptime

    @property
    def sleeping(self) -> int:
        """How many are asleep now."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Sleep until `advance` has gone far enough; zero or less gives the loop one turn."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.uptime + seconds, next(self._order), future))
        if self._watching is not None and not self._watching.done():
            self._watching.set_result(None)
        await future

    async def asleep(self, count: int) -> None:
        """Wait until so many are asleep; one may wait for that, on the loop of those who sleep."""
        while self.sleeping < count:
            self._watching = asyncio.get_running_loop().create_future()
            await self._watching

    async def advance(self, seconds: float) -> None:
        """Move both clocks on, and let everyone who wakes run at their own moment, the earliest first."""
        await settle()
        until = self.uptime + seconds
        while self._sleepers and self._sleepers[0][0] <= until:
            wake, _, future = heapq.heappop(self._sleepers)
            if future.done():  # its sleeper was cancelled
                continue
            self._move_to(max(wake, self.uptime))  # a test may have let it jump past a sleeper
            future.set_result(None)
            await settle()
        self._move_to(until)

    def _move_to(self, uptime: float) -> None:
        self.time += uptime - self.uptime
        self.uptime = uptime


async def settle(turns: int = 10) -> None:
    """Give every ready task a few turns of the loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
