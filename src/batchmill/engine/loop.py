"""One lifecycle for all loops: step while there is work, else wait for the bell or for time to pass."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from batchmill.clock import Clock
from batchmill.store.database import Database


class Step(Protocol):
    """What a loop does again and again."""

    async def step(self) -> bool:
        """Do one piece of work, if there is any; say whether there was."""
        ...


class Bell:
    """Wakes one loop early. It only saves waiting: whoever is woken looks into the Store."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the loop, or keep it from falling asleep."""
        self._rung.set()

    async def wait(self, seconds: float) -> None:
        """Return when the bell has rung since the last wait, at the latest after this time."""
        if self._rung.is_set() or seconds <= 0:
            await asyncio.sleep(0)  # whoever waits lets the others run
        else:
            waits = [asyncio.ensure_future(self._rung.wait()), asyncio.ensure_future(self._clock.sleep(seconds))]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        self._rung.clear()


class Doorbell:
    """Rings when the rows have changed, whoever changed them: loops that find nothing need not look all the time."""

    def __init__(self, *, database: Database, bells: Sequence[Bell]) -> None:
        self._database = database
        self._bells = bells
        self._version: int | None = None

    async def step(self) -> bool:
        """Look once; False, since the next look has its time."""
        version = await self._database.version()
        if version is None or version != self._version:
            for bell in self._bells:
                bell.ring()
        self._version = version
        return False


async def run_steps(looped: Step, *, bell: Bell, idle: float) -> None:
    """Step for ever; after a step that found nothing, wait for the bell or `idle` seconds.

    A fault ends the loop: the worker ends with it, and the next one starts from what is durable.
    """
    while True:
        if not await looped.step():
            await bell.wait(idle)
        else:
            await asyncio.sleep(0)  # a busy loop lets the others run
