"""The rows behind the order of a batch's Results: Segments by rank, what is kept of them, and who retries a batch."""

from collections.abc import Sequence

from sqlalchemy import exists, select, tuple_, update

from batchmill.spec.family import Child, parse_taken
from batchmill.spec.states import FINAL
from batchmill.store.batch import Batch, batches_by_id
from batchmill.store.database import Transaction
from batchmill.store.slice import Segment, segment_of_row
from batchmill.store.tables import batch, file, segment


def list_ranked(
    tx: Transaction, *, batch_id: str, seq: int, ordinal: int, after: bool = False, limit: int
) -> Sequence[Segment]:
    """Return at most so many Segments in their order, from that of a commit and a Slice on, or `after` it."""
    place, given = tuple_(segment.c.seq, segment.c.slice), tuple_(seq, ordinal)
    query = select(segment).where(segment.c.batch_id == batch_id, place > given if after else place >= given)
    query = query.order_by(segment.c.seq, segment.c.slice).limit(limit)
    return [segment_of_row(row) for row in tx.connection.execute(query)]


def useless_orders(tx: Transaction, *, limit: int) -> Sequence[tuple[str, str]]:
    """Return batches, with their `order_key`, of whose two result Files none is there any more."""
    left = exists().where(file.c.id.in_((batch.c.output_file_id, batch.c.error_file_id)))
    query = select(batch.c.id, batch.c.order_key).where(batch.c.order_key.is_not(None), ~left).limit(limit)
    return [(batch_id, key) for batch_id, key in tx.connection.execute(query)]


def clear_order(tx: Transaction, *, batch_id: str) -> bool:
    """Let a batch refer to its order no more; False if another Sweeper did that already."""
    kept = update(batch).where(batch.c.id == batch_id, batch.c.order_key.is_not(None))
    return tx.connection.execute(kept.values(order_key=None)).rowcount == 1


def lock_parent(tx: Transaction, *, batch_id: str) -> None:
    """Let nobody else make a child of this batch until the transaction is over; SQLite has one writer anyhow."""
    tx.connection.execute(select(batch.c.id).where(batch.c.id == batch_id).with_for_update(key_share=True))


def list_children(tx: Transaction, *, batch_id: str) -> Sequence[Batch]:
    """Return the batches that retry this one, the oldest first."""
    ids = tx.connection.execute(select(batch.c.id).where(batch.c.parent_id == batch_id)).scalars().all()
    return sorted(batches_by_id(tx, batch_ids=ids).values(), key=lambda child: child.id)


def as_child(found: Batch) -> Child:
    """Return what a family knows of a batch that retries another."""
    facts = found.object
    return Child(found.id, parse_taken(found.retry_group), is_void=facts.status in FINAL and facts.counts.total == 0)


def list_family(tx: Transaction, *, parent: Batch) -> Sequence[Batch]:
    """Return a batch, and in the order of their making all that retry it, or one that does, and so on."""
    family, todo = [parent], [parent.id]
    while todo:
        children = list_children(tx, batch_id=todo.pop())
        family += children
        todo += [child.id for child in children]
    return [parent, *sorted(family[1:], key=lambda each: each.id)]
