"""Tells the rows once a second what each lane has in flight, and learns what part of the Backend's window it has.

What is told, who judges and who gets what: `schedule.share`. A worker that is alone has all of it, and only tells.
"""

from collections.abc import Callable, Collection, Mapping

import structlog

from batchmill.blobs.space import is_full
from batchmill.clock import Clock
from batchmill.engine.lanes import Lane, Lanes
from batchmill.schedule.share import Heard
from batchmill.store.database import Database, Transaction
from batchmill.store.lane import Told, look, show_window, tell


class Sharing:
    """Each worker's side of the windows that it shares with others.

    Args:
        pending: Counts the lines in hand for models, that could be sent now.
    """

    def __init__(
        self,
        *,
        database: Database,
        lanes: Lanes,
        pending: Callable[[Collection[str]], int],
        worker_id: str,
        clock: Clock,
    ) -> None:
        self._database = database
        self._lanes = lanes
        self._pending = pending
        self._worker_id = worker_id
        self._clock = clock
        self._busy: set[str] = set()  # backends that the rows say this worker has something to do with
        self._full = False
        self._log = structlog.get_logger("sharing")

    async def step(self) -> bool:
        """Tell and hear once; say whether there is more to tell at once, since a window was judged.

        While nothing is in flight, and nothing could be, it is only looked whether others have come or gone.
        """
        lanes = {lane.backend.name: lane for lane in self._lanes}
        told = {name: self._told(lane) for name, lane in lanes.items()}
        busy = {name for name, each in told.items() if each.part.is_busy}
        heard, is_news = (
            await self._database.read(lambda tx: look(tx, worker_id=self._worker_id, told=told))
            if not (busy or self._busy)
            else ({}, True)
        )
        if is_news:
            heard = await self._tell(told)
            self._busy = (busy | (self._busy - heard.keys())) & told.keys()
        now = self._clock.boot()
        more = [lanes[name].pace.hear(each, now) for name, each in heard.items()]
        return any(more)

    def _told(self, lane: Lane) -> Told:
        waiting = 0 if lane in self._lanes.leaving else self._pending(self._lanes.served_by(lane))
        return Told(lane.pace.part(self._clock.boot(), waiting=waiting), lane.pace.judged, lane.pace.start)

    async def _tell(self, told: Mapping[str, Told]) -> Mapping[str, Heard]:
        now = int(self._clock.now())
        try:
            heard = await self._database.write(lambda tx: tell(tx, worker_id=self._worker_id, told=told, now=now))
        except OSError as fault:
            if not is_full(fault):
                raise
            if not self._full:
                self._log.warning("not told: the disk is full")
            self._full = True
            return {}  # each goes on with the part that it has
        self._full = False
        return heard


class Showing:
    """What a worker that is alone has in flight, and its windows: kept for who looks at them, when they change."""

    def __init__(self, *, database: Database, lanes: Lanes, worker_id: str) -> None:
        self._database = database
        self._lanes = lanes
        self._worker_id = worker_id
        self._shown: dict[str, tuple[int, int]] = {}  # by backend: in flight, window

    async def step(self) -> bool:
        """Show what is new; False, since the next look has its time. On a full disk it is shown later."""
        now = {lane.backend.name: (lane.pace.in_flight, lane.pace.window) for lane in self._lanes}
        news = {name: each for name, each in now.items() if self._shown.get(name) != each}
        if not news:
            return False

        def statements(tx: Transaction) -> list[str]:
            return [
                name
                for name, (in_flight, window) in news.items()
                if show_window(tx, worker_id=self._worker_id, name=name, in_flight=in_flight, window=window)
            ]

        try:
            kept = await self._database.write(statements)
        except OSError as fault:
            if not is_full(fault):
                raise
            return False
        self._shown = {name: each for name, each in now.items() if name in kept or name not in news}
        return False
