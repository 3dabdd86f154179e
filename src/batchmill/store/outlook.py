"""What the rows know of how a batch would go that is not there yet: what stands before it, and how fast that goes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import case, func, or_, select

from batchmill.schedule.forecast import Recent
from batchmill.schedule.order import BYTES_PER_TOKEN
from batchmill.spec.states import Status
from batchmill.store.database import Transaction
from batchmill.store.tables import batch, blob

_MOVING = 1000  # batches whose rates are looked at
_LATELY = 1000  # completed ones, those with the latest deadlines, among which the last of the same models is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The batches, of any organisation, that want one of some models.

    `tokens` is what is left of them by estimate; `running` is what was counted of those in progress, `last` of the
    last one that was completed.
    """

    batches: int
    tokens: float
    running: Sequence[Recent]
    last: Recent | None


def read_queue(tx: Transaction, *, models: Collection[str]) -> Queue:
    """Return what a new batch of these models would find. Batches of several models, or not yet known ones, count.

    Paused ones stand before nobody.
    """
    wanted = or_(batch.c.model.in_(models), batch.c.model.is_(None)) & batch.c.paused_at.is_(None)
    running = batch.c.status == Status.IN_PROGRESS.value
    left = case((running, batch.c.open_slices * batch.c.slice_tokens), else_=blob.c.bytes / BYTES_PER_TOKEN)
    ahead = (
        select(func.count(), func.coalesce(func.sum(left), 0))
        .select_from(batch.outerjoin(blob, blob.c.key == batch.c.input_key))
        .where(batch.c.status.in_((Status.VALIDATING.value, Status.IN_PROGRESS.value)), wanted)
    )
    count, tokens = tx.connection.execute(ahead).one()
    counted = running & batch.c.counted_at.is_not(None) & wanted
    age = case((batch.c.counted_at <= tx.lease_now, tx.lease_now - batch.c.counted_at))
    sums = (batch.c.recent_lines, batch.c.recent_tokens, batch.c.recent_seconds)
    moving = tx.connection.execute(select(*sums, age).where(counted).limit(_MOVING))
    done = select(batch).where(batch.c.status == Status.COMPLETED.value)
    lately = done.order_by(batch.c.expires_at.desc()).limit(_LATELY).subquery()
    alike = lately.c.model.in_(models) & (lately.c.recent_tokens > 0)
    same = select(*(lately.c[each.name] for each in sums)).where(alike)
    last = tx.connection.execute(same.order_by(lately.c.id.desc()).limit(1)).first()
    return Queue(
        batches=count,
        tokens=float(tokens),
        running=[Recent(lines=r[0], tokens=r[1], seconds=r[2], age=r[3]) for r in moving],
        last=None if last is None else Recent(lines=last[0], tokens=last[1], seconds=last[2], age=None),
    )
