"""Watches the clock for the others: closes windows, re-checks what should have moved, clears what nobody needs."""

import asyncio
from itertools import islice

import structlog

from batchmill.blobs.blobs import Blobs
from batchmill.clock import Clock
from batchmill.spec.states import Event, Status
from batchmill.store.batch import advance, batches_drained, batches_past_window, clear_batch, finished_uncleared
from batchmill.store.blob import delete_blobs, doom_stale, doomed_keys, drop_refs, known_keys
from batchmill.store.database import Database, Transaction
from batchmill.store.file import delete_expired, has_expired
from batchmill.store.slice import delete_slices

_AT_ONCE = 100  # rows a step: no step holds the writer for long
_STALE_SECONDS = 3600  # bytes without a row, and writings that nobody ended, are garbage after an hour
_ORPHAN_SECONDS = 600  # how often the bytes are compared with the rows


class Sweeper:
    """Moves batches whose window has passed, and removes what has no use any more."""

    def __init__(self, *, database: Database, blobs: Blobs, clock: Clock) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._orphans_at = clock.boot() + _ORPHAN_SECONDS
        self._log = structlog.get_logger("sweeper")

    async def step(self) -> bool:
        """Sweep once; say whether there may be more of the same."""
        moved = await self._move_batches()
        if await self._database.read(self._needs_clearing):
            await self._database.write(self._clear)
        removed = await self._remove_doomed()
        if self._clock.boot() >= self._orphans_at:
            self._orphans_at = self._clock.boot() + _ORPHAN_SECONDS
            await self._database.write(
                lambda tx: doom_stale(tx, created_before=int(self._clock.now()) - _STALE_SECONDS)
            )
            await self._remove_orphans()
        return moved + removed >= _AT_ONCE

    async def _move_batches(self) -> int:
        """Send the events that nobody else sends, or that someone died over."""
        now = int(self._clock.now())
        late = await self._database.read(lambda tx: batches_past_window(tx, now=now, limit=_AT_ONCE))
        drained = await self._database.read(lambda tx: batches_drained(tx, limit=_AT_ONCE))
        moves = [(batch_id, status, Event.WINDOW_PASSED) for batch_id, status in late]
        moves += [(batch_id, Status.IN_PROGRESS, Event.DRAINED) for batch_id in drained]

        def statements(tx: Transaction) -> None:
            for batch_id, status, event in moves:
                if advance(tx, batch_id=batch_id, status=status, event=event, now=now):
                    self._log.info("swept", batch=batch_id, by=event.value)

        if moves:
            await self._database.write(statements)
        return len(moves)

    def _needs_clearing(self, tx: Transaction) -> bool:
        return bool(finished_uncleared(tx, limit=1)) or has_expired(tx, now=int(self._clock.now()))

    def _clear(self, tx: Transaction) -> None:
        """Drop what final batches still refer to: the input, the Plan, the Slices and Segments; and expired Files."""
        for batch in finished_uncleared(tx, limit=_AT_ONCE):
            for key, refs in delete_slices(tx, batch_id=batch.id):
                drop_refs(tx, key=key, count=refs)
            for held in (batch.input_key, batch.plan_key):
                if held is not None:
                    drop_refs(tx, key=held)
            clear_batch(tx, batch_id=batch.id)
        for key in delete_expired(tx, now=int(self._clock.now()), limit=_AT_ONCE):
            drop_refs(tx, key=key)

    async def _remove_doomed(self) -> int:
        """Remove the bytes of doomed blobs, then their rows: a crash in between leaves a row that is doomed still."""
        keys = await self._database.read(lambda tx: doomed_keys(tx, limit=_AT_ONCE))
        for key in keys:
            await asyncio.to_thread(self._blobs.delete, key)
        if keys:
            await self._database.write(lambda tx: delete_blobs(tx, keys=keys))
        return len(keys)

    async def _remove_orphans(self) -> None:
        """Remove bytes that no row knows and that are too old to be on their way."""
        old = self._blobs.keys(before=self._clock.now() - _STALE_SECONDS)
        while keys := await asyncio.to_thread(lambda: list(islice(old, _AT_ONCE))):
            known = await self._database.read(lambda tx, keys=keys: known_keys(tx, keys=keys))  # type: ignore[misc]
            for key in set(keys) - known:
                self._log.warning("orphaned bytes removed", key=key)
                await asyncio.to_thread(self._blobs.delete, key)
