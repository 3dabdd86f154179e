"""The time of day, a clock that never steps, and sleep, so that tests own time."""

import asyncio
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Where time comes from. Nobody else calls `time` or `asyncio.sleep`."""

    def now(self) -> float:
        """Unix time in seconds. It may step; use it for stamps and deadlines that people see."""

    def boot(self) -> float:
        """Seconds on a clock that never steps. Use it for leases and durations."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`; zero or less still gives the loop a turn."""


class SystemClock:
    """The machine's own clocks.

    `boot` also counts the time a suspended machine slept, where the system has such a clock: a lease must lapse
    while its owner is asleep.
    """

    def __init__(self) -> None:
        self._boot = getattr(time, "CLOCK_BOOTTIME", None)  # Linux only

    def now(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def boot(self) -> float:
        """Seconds since the machine started, or since some fixed moment where the system does not say."""
        return time.monotonic() if self._boot is None else time.clock_gettime(self._boot)

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)
