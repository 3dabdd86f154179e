"""The proxies before the database and the bucket, in a process of their own.

In that of the run they would share an interpreter with clients and nemesis, and each round trip wait for those.
"""

import asyncio
import threading
from collections.abc import Mapping
from multiprocessing.managers import BaseManager

from faults.deaf import Deaf
from faults.toxic import Fault, Toxic

LOST_COMMITS = "lost commits"
LOST_EVERY = 4  # of the COMMITs
# What befalls which share of the requests to the bucket.
TOXIC: Mapping[str, tuple[Fault, float]] = {
    "500": (Fault.ERROR, 1.0),
    "slow down": (Fault.SLOW_DOWN, 0.7),
    "reset": (Fault.RESET, 1.0),
    "lost reply": (Fault.LOST_REPLY, 0.5),
}


class Weather:
    """Both proxies, well until they are told otherwise."""

    def __init__(self, *, database: int, bucket: int) -> None:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        self._deaf = asyncio.run_coroutine_threadsafe(Deaf(port=database).start(), loop).result()
        self._toxic = Toxic(bucket)

    def ports(self) -> tuple[int, int]:
        """Return where to find the database and the bucket."""
        return self._deaf.port, self._toxic.port

    def begin(self, trouble: str) -> None:
        """Be unwell in this way."""
        if trouble == LOST_COMMITS:
            self._deaf.lose_every(LOST_EVERY)
        else:
            fault, share = TOXIC[trouble]
            self._toxic.fail(fault, share=share)

    def end(self) -> None:
        """Be well."""
        self._deaf.lose_every(0)
        self._toxic.heal()

    def bites(self) -> dict[str, int]:
        """Return how often each trouble was met."""
        met = {trouble: self._toxic.met[fault] for trouble, (fault, _) in TOXIC.items()}
        return {LOST_COMMITS: self._deaf.lost, **met}


class WeatherProcess(BaseManager):
    """Where the weather is made."""


WeatherProcess.register("Weather", Weather)
