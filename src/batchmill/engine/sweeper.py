"""Watches the clock for the others: closes windows, re-checks what should have moved, clears what nobody needs."""

import asyncio
from itertools import islice

import structlog

from batchmill.backends.router import Router
from batchmill.blobs.blobs import Blobs, BlobsAway
from batchmill.blobs.space import Room, is_full
from batchmill.clock import Clock
from batchmill.engine.waiting import Waiting
from batchmill.spec.states import Event, Status
from batchmill.store.batch import (
    Batch,
    advance,
    batches_drained,
    batches_past_window,
    clear_batch,
    finished_uncleared,
    retry_stuck,
)
from batchmill.store.blob import delete_blobs, doom_stale, doomed_keys, drop_refs, known_keys
from batchmill.store.database import Database, Transaction
from batchmill.store.file import delete_expired, has_expired
from batchmill.store.order import clear_order, useless_orders
from batchmill.store.replay import delete_old_replays, has_old_replays
from batchmill.store.slice import delete_slices
from batchmill.store.worker import forget_dead, forget_names, has_elder

_AT_ONCE = 100  # rows a step: no step holds the writer for long
_SLICES_AT_ONCE = 32  # with their Segments; a million lines have some four thousand
_STALE_SECONDS = 3600  # bytes without a row, and writings that nobody ended, are garbage after an hour
_ORPHAN_SECONDS = 600  # how often the bytes are compared with the rows
_STUCK_SECONDS = 600  # how often a stuck batch is tried again: what was wrong may have been mended


class Sweeper:
    """Moves batches whose window has passed, removes what has no use any more, keeps the reserve of the disk.

    Of several workers the oldest that lives sweeps. Two at once, while one is taking over, do no harm.
    """

    def __init__(
        self,
        *,
        database: Database,
        blobs: Blobs,
        room: Room,
        router: Router,
        clock: Clock,
        worker_id: str | None = None,
    ) -> None:
        self._database = database
        self._worker_id = worker_id
        self._blobs = blobs
        self._room = room
        self._clock = clock
        self._waiting = Waiting(database=database, room=room, router=router, clock=clock)
        self._orphans_at = clock.boot() + _ORPHAN_SECONDS
        self._stuck_at = clock.boot() + _STUCK_SECONDS
        self._full = False
        self._log = structlog.get_logger("sweeper")

    async def step(self) -> bool:
        """Sweep once; say whether there may be more of the same.

        A sweep that finds the disk full is left for the next time; the others go on, and those that remove bytes are
        what makes room. Where the bytes are away it is the same.
        """
        await asyncio.to_thread(self._room.keep)
        more = full = away = False
        by_rows = (
            self._move_batches,
            self._clear,
            self._expire_files,
            self._forget_replays,
            self._remove_doomed,
        )
        by_time = (self._remove_orders, self._remove_orphans, self._start_anew, self._tell)
        needed = await self._is_needed()
        for sweep in () if needed is None else (*by_rows, *by_time) if needed else by_time:
            try:
                more |= await sweep()
            except BlobsAway as fault:
                self._log.warning("the bytes are away: not all could be swept", reason=str(fault))
                away = True
            except OSError as fault:
                if not is_full(fault):
                    raise
                await asyncio.to_thread(self._room.give)
                full = True
        if full and not self._full:
            self._log.warning("the disk is full: not all could be swept")
        self._full = full
        return more and not (full or away)

    async def _is_needed(self) -> bool | None:
        """Say whether any row is to be swept, None if an older worker does that.

        One read a second that mostly finds none, in place of six.
        """
        now = int(self._clock.now())

        def statements(tx: Transaction) -> bool | None:
            if self._worker_id is not None and has_elder(tx, worker_id=self._worker_id):
                return None
            return bool(
                batches_past_window(tx, now=now, limit=1)
                or batches_drained(tx, limit=1)
                or finished_uncleared(tx, limit=1)
                or has_expired(tx, now=now)
                or has_old_replays(tx, now=now)
                or doomed_keys(tx, limit=1)
            )

        try:
            return await self._database.read(statements)
        except OSError as fault:
            if not is_full(fault):
                raise
            return True

    async def _move_batches(self) -> bool:
        """Send the events that nobody else sends, or that someone died over."""
        now = int(self._clock.now())
        late = await self._database.read(lambda tx: batches_past_window(tx, now=now, limit=_AT_ONCE))
        drained = await self._database.read(lambda tx: batches_drained(tx, limit=_AT_ONCE))
        moves = [(batch_id, status, Event.WINDOW_PASSED) for batch_id, status in late]
        moves += [(batch_id, Status.IN_PROGRESS, Event.DRAINED) for batch_id in drained]

        def statements(tx: Transaction) -> list[tuple[str, Event]]:
            return [
                (batch_id, event)
                for batch_id, status, event in sorted(moves)
                if advance(tx, batch_id=batch_id, status=status, event=event, now=now)
            ]

        for batch_id, event in await self._database.write(statements) if moves else ():
            self._log.info("swept", batch=batch_id, by=event.value)
        return len(moves) >= _AT_ONCE

    async def _clear(self) -> bool:
        """Drop what a final batch still refers to: portion by portion its Slices, at last the input and the Plan."""
        found = await self._database.read(lambda tx: finished_uncleared(tx, limit=1))
        for batch in found:
            await self._database.write(lambda tx, batch=batch: _clear_portion(tx, batch))  # type: ignore[misc]
        return bool(found)

    async def _expire_files(self) -> bool:
        now = int(self._clock.now())

        def statements(tx: Transaction) -> int:
            keys = delete_expired(tx, now=now, limit=_AT_ONCE)
            for key in sorted(keys):
                drop_refs(tx, key=key)
            return len(keys)

        return await self._database.write(statements) >= _AT_ONCE

    async def _forget_replays(self) -> bool:
        now = int(self._clock.now())
        return await self._database.write(lambda tx: delete_old_replays(tx, now=now, limit=_AT_ONCE)) >= _AT_ONCE

    async def _remove_doomed(self) -> bool:
        """Remove the bytes of doomed blobs, then their rows: a crash in between leaves a row that is doomed still."""
        keys = await self._database.read(lambda tx: doomed_keys(tx, limit=_AT_ONCE))
        for key in keys:
            await asyncio.to_thread(self._blobs.delete, key)
        if keys:
            await self._database.write(lambda tx: delete_blobs(tx, keys=keys))
        return len(keys) >= _AT_ONCE

    async def _remove_orders(self) -> bool:
        """Every ten minutes, ahead of the orphans, let go of orders that lead to no File any more."""
        if self._clock.boot() < self._orphans_at:
            return False

        def statements(tx: Transaction) -> None:
            for batch_id, key in found:
                if clear_order(tx, batch_id=batch_id):
                    drop_refs(tx, key=key)

        more = False
        while found := await self._database.read(lambda tx: useless_orders(tx, limit=_AT_ONCE)):
            await self._database.write(statements)
            more = True  # bytes that are doomed now
        return more

    async def _remove_orphans(self) -> bool:
        """Every ten minutes, remove bytes that no row knows and that are too old to be on their way."""
        if self._clock.boot() < self._orphans_at:
            return False
        self._orphans_at = self._clock.boot() + _ORPHAN_SECONDS
        before = self._clock.now() - _STALE_SECONDS
        await self._database.write(lambda tx: doom_stale(tx, created_before=int(before)))
        old = self._blobs.keys(before=before)
        while keys := await asyncio.to_thread(lambda: list(islice(old, _AT_ONCE))):
            known = await self._database.read(lambda tx, keys=keys: known_keys(tx, keys=keys))  # type: ignore[misc]
            for key in set(keys) - known:
                self._log.warning("orphaned bytes removed", key=key)
                await asyncio.to_thread(self._blobs.delete, key)
        return False

    async def _start_anew(self) -> bool:
        """Every ten minutes, try what is stuck once more, and forget workers that died long ago."""
        if self._clock.boot() >= self._stuck_at:
            self._stuck_at = self._clock.boot() + _STUCK_SECONDS
            await self._database.write(retry_stuck)
            await self._database.write(forget_dead)
            await self._database.write(forget_names)
        return False

    async def _tell(self) -> bool:
        await self._waiting.tell()
        return False


def _clear_portion(tx: Transaction, batch: Batch) -> None:
    refs, left = delete_slices(tx, batch_id=batch.id, limit=_SLICES_AT_ONCE)
    for key, count in refs:
        drop_refs(tx, key=key, count=count)
    if not left and clear_batch(tx, batch_id=batch.id):
        for held in (batch.input_key, batch.plan_key):
            if held is not None:
                drop_refs(tx, key=held)
