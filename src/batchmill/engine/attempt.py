"""Attempts at moving one batch on, and what becomes of the batch when one fails (invariants R11, R16)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError

from batchmill.blobs.blobs import BlobMissing, BlobsAway
from batchmill.blobs.space import Room, is_full
from batchmill.clock import Clock
from batchmill.ledger.segment import DamagedSegment
from batchmill.store.batch import TRIES, Batch, put_off, set_waiting
from batchmill.store.blob import doom_blob
from batchmill.store.database import Database, DatabaseAway, Statements, Transaction
from batchmill.telemetry import UNTRACED, Traces
from batchmill.validation.child import ChildDied

T = TypeVar("T")

_FULL_SECONDS = 5.0  # after a write had no space, where statvfs sees some (a quota); well within R11's thirty
_AWAY_SECONDS = 2.0  # after the bytes did not answer, which was asked for some seconds by then
_BACKOFF = 2.0  # seconds; doubles with each failure
_NO_SPACE = "the disk is full: a write had no space"
_AWAY = "the storage of files does not answer"
# What the batch's owner is told; the operator's log has the fault itself. The first that fits.
_WHY: tuple[tuple[type[Exception], str], ...] = (
    (DamagedSegment, "stored results are damaged"),
    (BlobMissing, "stored bytes are missing"),
    (ChildDied, "the process that did it died"),
    (MemoryError, "there was too little memory"),
    (Exception, "an internal error"),
)


class Attempts:
    """The attempts of one loop; `doing` is what it does with a batch: "validating", "finalizing".

    A failed attempt is the batch's own affair, and the loop goes on with the next one. Not so an I/O error or a
    database that is away: those are raised, and end the worker. Where the bytes are away the batch waits, unblamed.
    """

    def __init__(self, *, doing: str, database: Database, room: Room, clock: Clock, traces: Traces = UNTRACED) -> None:
        self._doing = doing
        self._traces = traces
        self._database = database
        self._room = room
        self._clock = clock
        self._short: str | None = None
        self._owed: list[Statements[None]] = []  # what a full disk kept from being written
        self._log = structlog.get_logger(doing)

    async def begin(self, *, waits: Statements[bool], claim: Statements[T | None]) -> T | None:
        """Claim a batch, if one waits by the first statements and there is room to do anything with it."""
        if not self._owed and not await self._database.read(waits):
            return None
        short = await asyncio.to_thread(self._room.short)
        if short is None:
            try:
                while self._owed:
                    await self._database.write(self._owed[-1])
                    self._owed.pop()
                claimed = await self._database.write(claim)
            except OSError as fault:
                short = await self._refused(fault)
            else:
                self._note(None)
                return claimed
        self._note(short)
        return None

    @asynccontextmanager
    async def over(self, batch: Batch, *, keys: Sequence[str]) -> AsyncIterator[None]:
        """Work on a claimed batch; where that fails, give up the announced `keys` and put the batch off."""
        try:
            with self._traces.span(self._doing, batches=[batch.id]) as span:
                facts = {"batchmill.organisation": batch.organisation_id, "batchmill.file": batch.object.input_file_id}
                span.tell(facts)
                yield
        except (DatabaseAway, OperationalError, InterfaceError):
            raise
        except BlobsAway as fault:
            self._log.warning("the bytes are away", batch=batch.id, reason=str(fault))
            await self._put_off(batch, keys, crashed=False, seconds=_AWAY_SECONDS, waiting=_AWAY)
        except OSError as fault:
            waiting = await self._refused(fault)
            await self._put_off(batch, keys, crashed=False, seconds=_FULL_SECONDS, waiting=waiting)
        except Exception as fault:  # noqa: BLE001 - logged with its traceback; the batch waits, the others do not
            await self._fail(batch, keys, fault)

    async def _refused(self, fault: OSError) -> str:
        """Give the reserve up for the rows, and return why; raise what is no lack of space."""
        if not is_full(fault):
            raise fault
        await asyncio.to_thread(self._room.give)
        return await asyncio.to_thread(self._room.short) or _NO_SPACE

    async def _fail(self, batch: Batch, keys: Sequence[str], fault: Exception) -> None:
        crashes = batch.crashes + 1
        why = next(words for kind, words in _WHY if isinstance(fault, kind))
        seconds = _BACKOFF**crashes
        if crashes < TRIES:
            waiting = f"{self._doing} failed, {crashes} of {TRIES} times: {why}; the next try is {seconds:.0f} s later"
        else:
            waiting = stuck(self._doing, why)
        self._log.error("attempt failed", batch=batch.id, crashes=crashes, exc_info=fault)
        await self._put_off(batch, keys, crashed=True, seconds=seconds, waiting=waiting)

    async def _put_off(self, batch: Batch, keys: Sequence[str], *, crashed: bool, seconds: float, waiting: str) -> None:
        def statements(tx: Transaction) -> None:
            for key in keys:
                doom_blob(tx, key=key)
            if put_off(tx, batch_id=batch.id, epoch=batch.epoch, crashed=crashed, seconds=seconds):
                set_waiting(tx, batch_id=batch.id, waiting=waiting, now=int(self._clock.now()))

        self._log.warning("waits", batch=batch.id, waiting=waiting)
        try:
            await self._database.write(statements)
        except OSError as fault:
            await self._refused(fault)
            self._owed.append(statements)

    def _note(self, short: str | None) -> None:
        """Log that the loop stops or goes on, once."""
        if (short is None) != (self._short is None):
            if short is None:
                self._log.info("goes on: there is room again")
            else:
                self._log.warning("waits", waiting=short)
        self._short = short


def stuck(doing: str, why: str) -> str:
    """Return the sentence of a batch that nobody takes any more."""
    return (
        f"stuck: {doing} failed {TRIES} times in a row: {why}; its results are kept, "
        "and it is tried again every ten minutes"
    )
