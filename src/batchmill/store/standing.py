"""How batches stand that are not final: what decides whether one moves on, or why it does not."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, or_, select

from batchmill.spec.states import FINAL, Status
from batchmill.store.batch import is_free, is_stuck
from batchmill.store.database import Transaction
from batchmill.store.tables import batch, slice_


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One batch.

    `held`: somebody's lease on it, or on a Slice of it, holds; `put_off`: an attempt failed, and the next has its
    time; `model` is that of its first open Slice, while it is in progress.
    """

    batch_id: str
    organisation_id: str
    status: Status
    expires_at: int
    seq: int
    waiting: str | None
    held: bool
    put_off: bool
    stuck: bool
    model: str | None
    paused: bool = False
    priority: int = 0


def list_standings(tx: Transaction, *, limit: int) -> Sequence[Standing]:
    """Return how the oldest batches stand that are not final."""
    worked_on = select(slice_.c.batch_id).where(slice_.c.owner.is_not(None), slice_.c.lease_until >= tx.lease_now)
    first_open = select(slice_.c.model).where(slice_.c.batch_id == batch.c.id, slice_.c.open)
    query = (
        select(
            batch.c.id.label("batch_id"),
            batch.c.organisation_id,
            batch.c.status,
            batch.c.expires_at,
            batch.c.seq,
            batch.c.waiting,
            or_(~is_free(tx), batch.c.id.in_(worked_on)).label("held"),
            (func.coalesce(batch.c.retry_at, tx.lease_now) > tx.lease_now).label("put_off"),
            is_stuck(tx).label("stuck"),
            batch.c.paused_at.is_not(None).label("paused"),
            batch.c.priority,
            first_open.order_by(slice_.c.ordinal).limit(1).scalar_subquery().label("model"),
        )
        .where(batch.c.status.not_in([status.value for status in FINAL]))
        .order_by(batch.c.id)
        .limit(limit)
    )
    return [
        Standing(**{**row._mapping, "status": Status(row.status)})  # noqa: SLF001 - SQLAlchemy's public view of a row
        for row in tx.connection.execute(query)
    ]
