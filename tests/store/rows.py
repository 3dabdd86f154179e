"""Rows for the tests: organisations, batches in any status, Slices."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import TypeVar

from sqlalchemy import insert, select
from sqlalchemy.util import await_only

from batchmill.spec.objects import BatchObject
from batchmill.spec.states import Event, Status
from batchmill.store.batch import Batch, advance, batches_by_id, find_batch, insert_batch, is_stuck
from batchmill.store.blob import insert_ready
from batchmill.store.database import Transaction
from batchmill.store.organisation import insert_organisation
from batchmill.store.slice import Slice, insert_slices
from batchmill.store.tables import batch, blob

T = TypeVar("T")

MINE, THEIRS = "org_mine", "org_theirs"
NOW = 1_800_000_000
LEASE, LAPSED = 15.0, -1.0  # seconds; a lease of less than nothing has lapsed when it begins, on any clock

# The events that bring a batch from `validating` to each status.
PATHS = {
    Status.VALIDATING: (),
    Status.FAILED: (Event.REJECTED,),
    Status.IN_PROGRESS: (Event.ACCEPTED,),
    Status.FINALIZING: (Event.ACCEPTED, Event.DRAINED),
    Status.COMPLETED: (Event.ACCEPTED, Event.DRAINED, Event.SEALED),
    Status.EXPIRED: (Event.WINDOW_PASSED,),
    Status.CANCELLING: (Event.CANCEL,),
    Status.CANCELLED: (Event.CANCEL, Event.SEALED),
}


def add_organisations(tx: Transaction) -> None:
    """Add two organisations."""
    for organisation_id in (MINE, THEIRS):
        insert_organisation(tx, organisation_id=organisation_id, name=organisation_id, now=NOW)


def a_batch(batch_id: str = "batch_1", *, organisation_id: str = MINE, **facts: object) -> Batch:
    """Return a new batch, with a window of one hour unless `facts` say other."""
    fixed = BatchObject(
        id=batch_id,
        endpoint="/v1/chat/completions",
        input_file_id="file_1",
        completion_window="1h",
        status=Status.VALIDATING,
        created_at=NOW,
        expires_at=NOW + 3600,
    )
    return Batch(
        organisation_id=organisation_id,
        input_key=f"{batch_id}-input",
        plan_key=None,
        output_expires_after=None,
        epoch=0,
        object=replace(fixed, **facts),  # type: ignore[arg-type] - facts are fields of a BatchObject
    )


def add_batch(tx: Transaction, added: Batch | None = None, *, status: Status = Status.VALIDATING) -> str:
    """Add a batch in this status, with its input and its Plan as blobs; return its id."""
    added = added or a_batch()
    insert_batch(tx, added)
    for key in (f"{added.id}-input", f"{added.id}-plan"):
        insert_ready(tx, key=key, organisation_id=added.organisation_id, size=1, refs=1, now=NOW)
    at = Status.VALIDATING
    for event in PATHS[status]:
        values = {"plan_key": f"{added.id}-plan"} if event is Event.ACCEPTED else {}
        now = NOW + 3600 if event is Event.WINDOW_PASSED else NOW
        assert advance(tx, batch_id=added.id, status=at, event=event, now=now, values=values)
        at = status_of(tx, added.id)
    return added.id


def a_slice(batch_id: str, ordinal: int, *, lines: int = 8, model: str = "m", organisation_id: str = MINE) -> Slice:
    """Return a Slice with no line done; all Slices of a batch have as many lines."""
    return Slice(
        batch_id=batch_id,
        organisation_id=organisation_id,
        ordinal=ordinal,
        model=model,
        first=ordinal * lines,
        lines=lines,
        bytes=100,
        done=bytes((lines + 7) // 8),
        epoch=0,
    )


def add_running(
    tx: Transaction, batch_id: str = "batch_1", *, slices: int = 2, lines: int = 8, organisation_id: str = MINE
) -> str:
    """Add a batch in progress with so many open Slices; return its id."""
    added = a_batch(batch_id, organisation_id=organisation_id)
    add_batch(tx, added)
    values = {"total": slices * lines, "open_slices": slices, "plan_key": f"{batch_id}-plan"}
    assert advance(tx, batch_id=batch_id, status=Status.VALIDATING, event=Event.ACCEPTED, now=NOW, values=values)
    if slices:
        insert_slices(tx, [a_slice(batch_id, n, lines=lines, organisation_id=organisation_id) for n in range(slices)])
    return batch_id


def status_of(tx: Transaction, batch_id: str) -> Status:
    """Return a batch's status."""
    return batches_by_id(tx, batch_ids=[batch_id])[batch_id].object.status


def get_batch(tx: Transaction, batch_id: str = "batch_1", *, organisation_id: str = MINE) -> Batch:
    """Return a batch that is there."""
    found = find_batch(tx, organisation_id=organisation_id, batch_id=batch_id)
    assert found is not None
    return found


def add_blob(tx: Transaction, key: str, *, state: str = "ready", refs: int = 1) -> None:
    """Add a blob in any state."""
    row = {"key": key, "organisation_id": MINE, "state": state, "bytes": 1, "refs": refs, "created_at": NOW}
    tx.connection.execute(insert(blob).values(row))


def blobs_by_key(tx: Transaction) -> dict[str, tuple[str, int]]:
    """Return state and references of each blob."""
    return {row.key: (row.state, row.refs) for row in tx.connection.execute(select(blob).order_by(blob.c.key))}


def meanwhile(loop: asyncio.AbstractEventLoop, call: Awaitable[T]) -> T:
    """Let something else happen in the middle of a transaction, and return what it gives.

    A transaction on SQLite runs in a thread of its own, one on PostgreSQL inside the loop.
    """

    async def wait() -> T:
        return await call

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run_coroutine_threadsafe(wait(), loop).result()
    return await_only(wait())


def ordinals(slices: Sequence[Slice | None]) -> list[int]:
    """Return the ordinals of Slices that were claimed."""
    return [held.ordinal for held in slices if held is not None]


def stuck_ids(tx: Transaction) -> Sequence[str]:
    """Return the batches that nobody takes for a while."""
    return tx.connection.execute(select(batch.c.id).where(is_stuck(tx))).scalars().all()
