"""Looks once a second at what busy backends say of themselves: how many requests wait and run in them."""

import asyncio
from collections.abc import Iterable

from batchmill.clock import Clock
from batchmill.engine.lanes import Lane

_SILENT_SECONDS = 60.0  # how long one is left alone that says nothing


class Gauging:
    """Tells the paces of all lanes what their backends show."""

    def __init__(self, *, lanes: Iterable[Lane], clock: Clock) -> None:
        self._lanes = lanes
        self._clock = clock
        self._silent_until: dict[Lane, float] = {}

    async def step(self) -> bool:
        """Look once at each Backend that has something in flight; False, since the next look has its time."""
        now = self._clock.boot()
        self._silent_until = {lane: until for lane, until in self._silent_until.items() if now < until}
        busy = [lane for lane in self._lanes if lane.pace.is_busy and lane not in self._silent_until]
        await asyncio.gather(*map(self._look, busy))
        return False

    async def _look(self, lane: Lane) -> None:
        gauges = await lane.backend.gauges()
        lane.pace.gauged(gauges, self._clock.boot())
        if gauges is None:
            self._silent_until[lane] = self._clock.boot() + _SILENT_SECONDS
