"""Lets backends come and go while the worker runs: those that the operator adds, drains and removes."""

from collections.abc import Callable
from dataclasses import replace

import structlog

from batchmill.blobs.space import is_full
from batchmill.clock import Clock
from batchmill.engine.feed import Feed
from batchmill.engine.lanes import Lane, Lanes
from batchmill.engine.loop import Bell
from batchmill.store.database import Database, Statements
from batchmill.store.lane import leave_lane, say_health
from batchmill.store.roster import Entry, list_roster
from batchmill.telemetry import Metrics


class Roster:
    """Makes the lanes what the settings and the operator say together.

    A lane that is to go gets no more lines; what it had ready is given to the others. Once nothing is in flight there,
    it is gone; one that was added is closed then.

    Args:
        lanes: The lanes of the worker; those that are there at the start are the settings' own, and are never closed.
        feed: Where lanes take their lines from.
        make_lane: Makes a lane of what the operator has said; raises ValueError, with the reason, where it cannot.
        unknown: Rung when a lane has come: somebody has to ask what it serves.
    """

    def __init__(
        self,
        *,
        database: Database,
        lanes: Lanes,
        feed: Feed,
        make_lane: Callable[[Entry], Lane],
        worker_id: str,
        clock: Clock,
        unknown: Bell,
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._lanes = lanes
        self._feed = feed
        self._make_lane = make_lane
        self._worker_id = worker_id
        self._clock = clock
        self._unknown = unknown
        self._metrics = metrics
        self._given = {lane.backend.name: lane for lane in lanes}
        self._added: dict[str, tuple[Entry, Lane]] = {}
        self._refused: dict[str, Entry] = {}  # what no lane could be made of
        self._log = structlog.get_logger("roster")

    async def step(self) -> bool:
        """Look once at what the operator says; False, since the next look has its time."""
        said = {entry.name: entry for entry in await self._database.read(list_roster)}
        stay = {lane for name, lane in self._given.items() if name not in said or not said[name].draining}
        stay |= {lane for name, (entry, lane) in self._added.items() if _is_as_before(said.get(name), entry)}
        for lane in self._lanes:
            if lane not in stay and lane not in self._lanes.leaving:
                self._drain(lane)
        for lane in self._lanes.leaving:
            if lane not in stay and not lane.pace.in_flight:
                await self._remove(lane)
        for lane in stay:
            if lane in self._lanes.leaving or lane not in set(self._lanes):
                self._come(lane)
        here = {lane.backend.name for lane in self._lanes} | self._given.keys()
        for entry in said.values():
            if entry.name not in here and entry.url is not None and not entry.draining:
                await self._add(entry)
        for name in self._refused.keys() - said.keys():
            del self._refused[name]
            await self._leave(name)
        return False

    def _come(self, lane: Lane) -> None:
        self._lanes.add(lane)
        self._log.info("backend gets lines", backend=lane.backend.name)
        self._unknown.ring()

    def _drain(self, lane: Lane) -> None:
        self._lanes.drain(lane)
        self._feed.leave(lane)
        self._log.info("backend drains", backend=lane.backend.name, in_flight=lane.pace.in_flight)

    async def _remove(self, lane: Lane) -> None:
        name = lane.backend.name
        self._lanes.remove(lane)
        for gauge in (self._metrics.in_flight, self._metrics.window, self._metrics.backend_well):
            gauge.remove(name)
        if name in self._added:
            del self._added[name]
            await lane.backend.close()
        await self._leave(name)
        self._log.info("backend drained", backend=name)

    async def _add(self, entry: Entry) -> None:
        """Make a lane; where that cannot be, the rows say why, and it is tried again when the entry is another."""
        if self._refused.get(entry.name) == entry:
            return
        try:
            lane = self._make_lane(entry)
        except ValueError as fault:
            reason, now = str(fault), int(self._clock.now())
            self._refused[entry.name] = entry
            self._log.warning("backend not added", backend=entry.name, reason=reason)
            await self._keep(
                lambda tx: say_health(tx, worker_id=self._worker_id, name=entry.name, reason=reason, now=now)
            )
            return
        self._refused.pop(entry.name, None)
        self._added[entry.name] = (entry, lane)
        self._come(lane)

    async def _leave(self, name: str) -> None:
        await self._keep(lambda tx: leave_lane(tx, worker_id=self._worker_id, name=name))

    async def _keep(self, statements: Statements[None]) -> None:
        try:
            await self._database.write(statements)
        except OSError as fault:
            if not is_full(fault):
                raise
            self._log.warning("not kept: the disk is full")  # the row counts no more once this worker has ended


def _is_as_before(said: Entry | None, before: Entry) -> bool:
    """Say whether what the operator says of a backend leaves a lane as it was made."""
    return said is not None and replace(said, since=before.since) == before
