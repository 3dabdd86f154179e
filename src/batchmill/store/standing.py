"""How batches stand that are not final: what decides whether one moves on, or why it does not."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, func, or_, select, true

from batchmill.spec.queue import in_line
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


@dataclass(frozen=True, slots=True)
class _Queued:
    batch_id: str
    organisation_id: str
    expires_at: int
    priority: int


def count_ahead(tx: Transaction, *, batch_id: str, status: Status) -> int | None:
    """Return how many batches come before this one in its status: none if it is worked on; None if it is final.

    Those that were put off, are stuck or paused come before none.
    """
    if status in FINAL:
        return None
    held = select(slice_.c.ordinal).where(slice_.c.batch_id == batch_id, slice_.c.owner.is_not(None))
    held = held.where(slice_.c.lease_until >= tx.lease_now).limit(1)
    owned = select(batch.c.id).where(batch.c.id == batch_id, ~is_free(tx))
    if any(tx.connection.execute(query).first() is not None for query in (owned, held)):
        return 0
    waits = or_(batch.c.retry_at.is_(None), batch.c.retry_at <= tx.lease_now)
    goes = and_(waits, ~is_stuck(tx), batch.c.paused_at.is_(None) if status is Status.IN_PROGRESS else true())
    query = select(batch.c.id, batch.c.organisation_id, batch.c.expires_at, batch.c.priority).where(
        batch.c.status == status.value, or_(batch.c.id == batch_id, goes)
    )
    line = in_line(status, [_Queued(*row) for row in tx.connection.execute(query)])
    return [queued.batch_id for queued in line].index(batch_id)
