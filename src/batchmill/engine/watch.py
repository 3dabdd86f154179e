"""Looks at the batches in hand: what is closed or paused since, and what its owner has changed of it."""

import asyncio

from batchmill.clock import Clock
from batchmill.engine.calls import Calls
from batchmill.engine.feed import Feed
from batchmill.spec.states import Status
from batchmill.store.database import Database
from batchmill.store.steer import courses_of

WATCH_SECONDS = 0.5  # how often it is looked: sends stop within a second of a cancel or a pause
_CLOSING = 30.0  # seconds; open calls of a closing batch may end so long


class Watch:
    """Brings to a worker's Feed what the rows say of its batches.

    Of a paused batch open calls end when they end, however long that takes: nothing waits for them, and one that is cut
    off would be sent, and paid, twice.
    """

    def __init__(self, *, database: Database, feed: Feed, calls: Calls, clock: Clock) -> None:
        self._database = database
        self._feed = feed
        self._calls = calls
        self._clock = clock
        self._looking = asyncio.Lock()  # what is known later is said later

    async def look(self) -> None:
        """Stop sending of batches that are not in progress any more, past their window or paused; let others go on."""
        async with self._looking:
            held = sorted({work.batch_id for work in self._feed})
            courses = await self._database.read(lambda tx: courses_of(tx, batch_ids=held)) if held else {}
            now = self._clock.boot()
            for work in self._feed:
                course = courses.get(work.batch_id)
                if course is None:  # it was claimed meanwhile
                    continue
                self._feed.steer(work.batch_id, course)
                if course.status is not Status.IN_PROGRESS or self._clock.now() >= course.expires_at:
                    work.close(now)
        late = [w for w in self._feed if w.closing_since is not None and now >= w.closing_since + _CLOSING]
        await self._calls.cancel([request for work in late for request in self._calls.of(work)])
