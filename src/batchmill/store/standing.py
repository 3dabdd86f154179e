"""How batches stand that are not final: what decides whether one moves on, or why it does not."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, or_, select, true

from batchmill.spec.queue import in_line
from batchmill.spec.states import FINAL, Status
from batchmill.store.batch import is_free, is_live, is_stuck
from batchmill.store.database import Transaction
from batchmill.store.tables import batch, slice_

_COUNTED = 1_000  # batches that a place in the queue is counted among


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
    """Return how the oldest batches stand that are not final; one that is paused, and says so, takes no place."""
    says_so = and_(batch.c.paused_at.is_not(None), batch.c.waiting.is_not(None))
    first_open = select(slice_.c.model).where(slice_.c.batch_id == batch.c.id, slice_.c.open)
    query = (
        select(
            batch.c.id.label("batch_id"),
            batch.c.organisation_id,
            batch.c.status,
            batch.c.expires_at,
            batch.c.seq,
            batch.c.waiting,
            _is_held(tx).label("held"),
            (func.coalesce(batch.c.retry_at, tx.lease_now) > tx.lease_now).label("put_off"),
            is_stuck(tx).label("stuck"),
            batch.c.paused_at.is_not(None).label("paused"),
            batch.c.priority,
            first_open.order_by(slice_.c.ordinal).limit(1).scalar_subquery().label("model"),
        )
        .where(is_live(), ~and_(batch.c.status == Status.IN_PROGRESS.value, says_so))
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

    Those that were put off, are stuck or paused come before none. Of many only those with the nearest deadlines are
    counted: who follows a batch asks for this every second.
    """
    if status in FINAL:
        return None
    columns = (batch.c.id, batch.c.organisation_id, batch.c.expires_at, batch.c.priority)
    held, *own = tx.connection.execute(select(_is_held(tx), *columns).where(batch.c.id == batch_id)).one()
    if held:
        return 0
    waits = or_(batch.c.retry_at.is_(None), batch.c.retry_at <= tx.lease_now)
    goes = and_(waits, ~is_stuck(tx), batch.c.paused_at.is_(None) if status is Status.IN_PROGRESS else true())
    others = select(*columns).where(batch.c.status == status.value, batch.c.id != batch_id, goes)
    rows = [own, *tx.connection.execute(others.order_by(batch.c.expires_at).limit(_COUNTED))]
    line = in_line(status, [_Queued(*row) for row in rows])
    return [queued.batch_id for queued in line].index(batch_id)


def _is_held(tx: Transaction) -> ColumnElement[bool]:
    """Return the condition that somebody's lease on the batch, or on a Slice of it, holds."""
    someone = slice_.c.owner > ""  # for IS NOT NULL, SQLite would read every Slice there is
    worked_on = select(slice_.c.batch_id).where(someone, slice_.c.lease_until >= tx.lease_now)
    return or_(~is_free(tx), batch.c.id.in_(worked_on))
