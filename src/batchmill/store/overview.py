"""Who works, and what each holds: what an operator asks of all workers together."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from batchmill.store.database import Transaction
from batchmill.store.tables import batch, slice_, worker


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker: where and since when it runs (Unix seconds), how long its lease still lasts, and what it holds.

    With fewer than no seconds left it is dead, and what it holds is about to be taken over.
    """

    id: str
    place: str | None
    started_at: int
    lease_left: float
    slices: int
    batches: int


def list_workers(tx: Transaction) -> Sequence[WorkerState]:
    """Return every worker that has not ended in good order, the oldest first."""
    held = {
        table: select(func.count()).select_from(table).where(table.c.owner == worker.c.id).scalar_subquery()
        for table in (slice_, batch)
    }
    query = select(
        worker.c.id,
        worker.c.place,
        worker.c.started_at,
        (worker.c.lease_until - tx.lease_now).label("lease_left"),
        held[slice_].label("slices"),
        held[batch].label("batches"),
    ).order_by(worker.c.id)
    return [WorkerState(**row) for row in tx.connection.execute(query).mappings()]
