"""The rows of batches. One statement writes a status, and it names the one it expects (`spec/states.py`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import ColumnElement, Row, and_, case, func, insert, or_, select, true, update

from batchmill.spec.objects import BatchObject, Counts, LineError, Usage
from batchmill.spec.states import FINAL, STAMP, Event, Status, next_status
from batchmill.store.database import Transaction
from batchmill.store.tables import batch, slice_
from batchmill.store.webhook import announce

TRIES = 5  # validatings or finalizings that fail in a row; then a batch is stuck (invariant R16)

_TIMES = (
    "created_at",
    "expires_at",
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch: what its organisation sees of it, and what the loops need.

    `key_id` is that of the key that created it, if that was noted.
    `crashes` counts the validatings or finalizings that failed in a row; `waiting` says in words why it does not move
    on, and `waiting_since` (Unix seconds) from when on; `retries` counts the sends of its lines beyond their first.
    `order_key` is where the order of a final batch's Results is kept. `retry_group` is the error group of the parent's
    lines that it retries; None: all that were left.
    """

    organisation_id: str
    object: BatchObject
    input_key: str | None
    plan_key: str | None
    output_expires_after: int | None
    epoch: int
    key_id: str | None = None
    crashes: int = 0
    waiting: str | None = None
    waiting_since: int | None = None
    order_key: str | None = None
    retry_group: str | None = None
    retries: int = 0

    @property
    def id(self) -> str:
        """The batch's id."""
        return self.object.id


def insert_batch(tx: Transaction, added: Batch) -> None:
    """Add a batch in `validating`."""
    facts = added.object
    tx.ring()
    tx.connection.execute(
        insert(batch).values(
            id=facts.id,
            organisation_id=added.organisation_id,
            key_id=added.key_id,
            input_file_id=facts.input_file_id,
            input_key=added.input_key,
            endpoint=facts.endpoint,
            completion_window=facts.completion_window,
            metadata=None if facts.metadata is None else msgspec.json.encode(facts.metadata).decode(),
            output_expires_after=added.output_expires_after,
            status=Status.VALIDATING.value,
            created_at=facts.created_at,
            expires_at=facts.expires_at,
            parent_id=facts.parent_id,
            retry_group=added.retry_group,
        )
    )


def find_batch(tx: Transaction, *, organisation_id: str, batch_id: str) -> Batch | None:
    """Return a batch of the organisation."""
    mine = select(batch).where(batch.c.organisation_id == organisation_id, batch.c.id == batch_id)
    row = tx.connection.execute(mine).first()
    return None if row is None else _batch(row)


def batches_by_id(tx: Transaction, *, batch_ids: Sequence[str]) -> Mapping[str, Batch]:
    """Return these batches, whosever they are: for the loops, which act for the operator."""
    rows = tx.connection.execute(select(batch).where(batch.c.id.in_(batch_ids)))
    return {row.id: _batch(row) for row in rows}


def list_batches(
    tx: Transaction,
    *,
    organisation_id: str,
    after: str | None,
    limit: int,
    statuses: Sequence[Status] | None = None,
    parent_id: str | None = None,
) -> Sequence[Batch]:
    """Return at most `limit` batches, newest first, beyond the id `after`, in one of these statuses or in any.

    With `parent_id`, of the retries of that batch alone.
    """
    query = select(batch).where(batch.c.organisation_id == organisation_id).order_by(batch.c.id.desc()).limit(limit)
    if after is not None:
        query = query.where(batch.c.id < after)
    if statuses is not None:
        query = query.where(batch.c.status.in_([status.value for status in statuses]))
    if parent_id is not None:  # asked for apart: without statistics SQLite would go through all of the organisation's
        query = query.where(batch.c.id.in_(select(batch.c.id).where(batch.c.parent_id == parent_id)))
    return [_batch(row) for row in tx.connection.execute(query)]


def advance(
    tx: Transaction,
    *,
    batch_id: str,
    status: Status,
    event: Event,
    now: int,
    epoch: int | None = None,
    values: Mapping[str, object] | None = None,
) -> bool:
    """Move a batch by an event from the status it is expected in; the only statement that writes a status.

    With `epoch`, only while that lease's fence stands. False means that someone was faster: read again. A batch that
    enters another status waits for nothing and has no failure behind it; a cancel also takes it from whoever validates
    or finalizes it, since that is in vain now. Its end is announced to who wants to hear of it.

    Raises:
        ValueError: the table of states knows no such event in that status.
    """
    target = next_status(status, event)
    if target is None:
        raise ValueError(f"a batch in {status} knows no {event}")
    expected = [batch.c.id == batch_id, batch.c.status == status.value]
    if epoch is not None:
        expected.append(batch.c.epoch == epoch)
    changed: dict[str, object] = {**(values or {}), "status": target.value}
    if event is Event.WINDOW_PASSED:  # it may have been lengthened since it was found to have passed
        expected.append(batch.c.expires_at <= now)
    if target is not status:
        tx.ring()
        changed |= {STAMP[target]: now, "crashes": 0, "retry_at": None, "waiting": None, "waiting_since": None}
        if target is Status.IN_PROGRESS:  # a pause goes on, and what is said of it
            said = ("waiting", "waiting_since")
            changed |= {name: case((batch.c.paused_at.is_not(None), batch.c[name])) for name in said}
        else:
            changed["paused_at"] = None
        if event is Event.CANCEL:
            changed |= {"owner": None, "lease_until": None, "epoch": batch.c.epoch + 1}
    moved = tx.connection.execute(update(batch).where(*expected).values(changed)).rowcount == 1
    if moved and target in FINAL:
        announce(tx, batch_id=batch_id, status=target, now=now)
    return moved


def claim_batch(
    tx: Transaction,
    *,
    worker_id: str,
    statuses: Sequence[Status],
    lease: float,
    ready: ColumnElement[bool] | None = None,
) -> Batch | None:
    """Take the lease of the oldest batch in one of these statuses that nobody holds, and that is not put off or stuck.

    A lapsed lease is nobody's, and one more failure: its owner died over the batch.
    """
    claimable = _claimable(tx, statuses, ready)
    oldest = (
        select(batch.c.id)
        .where(claimable)
        .order_by(batch.c.id)
        .limit(1)
        .with_for_update(skip_locked=True, key_share=True)  # another row's foreign key does not hide the batch
        .scalar_subquery()
    )
    taken = (
        update(batch)
        .where(batch.c.id == oldest, claimable)
        .values(owner=worker_id, epoch=batch.c.epoch + 1, lease_until=tx.lease_now + lease, crashes=crashes(tx))
        .returning(batch)
    )
    row = tx.connection.execute(taken).first()
    return None if row is None else _batch(row)


def has_batch(tx: Transaction, *, statuses: Sequence[Status], ready: ColumnElement[bool] | None = None) -> bool:
    """Say whether `claim_batch` would find one."""
    query = select(batch.c.id).where(_claimable(tx, statuses, ready)).limit(1)
    return tx.connection.execute(query).first() is not None


def holds_batch(tx: Transaction, *, batch_id: str, epoch: int) -> bool:
    """Say whether the fence of this claim stands."""
    mine = select(batch.c.id).where(batch.c.id == batch_id, batch.c.epoch == epoch)
    return tx.connection.execute(mine).first() is not None


def put_off(tx: Transaction, *, batch_id: str, epoch: int, crashed: bool, seconds: float) -> bool:
    """Give a batch's lease back and leave the batch alone for so long; `crashed` counts one more failure.

    False if the lease was lost already.
    """
    mine = update(batch).where(batch.c.id == batch_id, batch.c.epoch == epoch)
    values = {
        "owner": None,
        "lease_until": None,
        "retry_at": tx.lease_now + seconds,
        "crashes": batch.c.crashes + int(crashed),
    }
    return tx.connection.execute(mine.values(values)).rowcount == 1


def retry_stuck(tx: Transaction) -> int:
    """Give every stuck batch one more try; return how many there are."""
    more = {"crashes": TRIES - 1, "retry_at": None, "owner": None, "lease_until": None}
    silent = {"waiting": None, "waiting_since": None}
    return tx.connection.execute(update(batch).where(is_stuck(tx)).values(more | silent)).rowcount


def hold_back(tx: Transaction, *, batch_id: str, seconds: float) -> None:
    """Let nobody claim a running batch's Slices for so long."""
    running = update(batch).where(batch.c.id == batch_id, batch.c.status == Status.IN_PROGRESS.value)
    tx.connection.execute(running.values(retry_at=tx.lease_now + seconds))


def unstick(tx: Transaction) -> None:
    """Give every batch all its tries again, at once: the operator has started Batchmill anew."""
    failed = or_(batch.c.crashes > 0, batch.c.retry_at.is_not(None))
    fresh = {"crashes": 0, "retry_at": None, "waiting": None, "waiting_since": None}
    tx.connection.execute(update(batch).where(failed).values(fresh))


def pass_over(tx: Transaction) -> None:
    """Let the time since the last commits count in no rate: nobody has worked."""
    running = update(batch).where(batch.c.status == Status.IN_PROGRESS.value, batch.c.counted_at.is_not(None))
    tx.connection.execute(running.values(counted_at=None))


def set_waiting(tx: Transaction, *, batch_id: str, waiting: str | None, now: int) -> bool:
    """Keep why a batch does not move on, None if it does; False if it said so already or is final.

    `waiting_since` is the time of the last change. A wait counts in no rate.
    """
    live = batch.c.status.not_in([status.value for status in FINAL])
    other = update(batch).where(batch.c.id == batch_id, live, batch.c.waiting.is_distinct_from(waiting))
    since = None if waiting is None else now
    changed = {"waiting": waiting, "waiting_since": since, "counted_at": None}
    return tx.connection.execute(other.values(changed)).rowcount == 1


def is_free(tx: Transaction) -> ColumnElement[bool]:
    """Return the condition that nobody's lease on the batch holds."""
    return or_(batch.c.owner.is_(None), batch.c.lease_until < tx.lease_now)


def is_stuck(tx: Transaction) -> ColumnElement[bool]:
    """Return the condition that a batch failed TRIES times in a row: nobody takes it for a while."""
    live = batch.c.status.not_in([status.value for status in FINAL])
    return and_(live, is_free(tx), crashes(tx) >= TRIES)


def crashes(tx: Transaction) -> ColumnElement[int]:
    """Return how many attempts at the batch failed in a row; an owner whose lease lapsed is one more."""
    return batch.c.crashes + case((batch.c.lease_until < tx.lease_now, 1), else_=0)


def is_settled(tx: Transaction, *, now: int, grace: int) -> ColumnElement[bool]:
    """Return the condition that no runner holds a Slice of the batch, or `grace` seconds of closing have passed."""
    held = (
        select(slice_.c.ordinal)
        .where(slice_.c.batch_id == batch.c.id, slice_.c.open, slice_.c.owner.is_not(None))
        .where(slice_.c.lease_until >= tx.lease_now)
    ).exists()
    return or_(~held, func.coalesce(batch.c.cancelling_at, batch.c.expires_at) + grace <= now)


def release_batch(tx: Transaction, *, batch_id: str, epoch: int) -> bool:
    """Give a batch's lease back; False if it was lost already."""
    mine = update(batch).where(batch.c.id == batch_id, batch.c.epoch == epoch)
    return tx.connection.execute(mine.values(owner=None, lease_until=None)).rowcount == 1


def batches_past_window(tx: Transaction, *, now: int, limit: int) -> Sequence[tuple[str, Status]]:
    """Return batches whose completion window has closed on them before their lines were done."""
    late = (
        select(batch.c.id, batch.c.status)
        .where(batch.c.status.in_((Status.VALIDATING.value, Status.IN_PROGRESS.value)), batch.c.expires_at <= now)
        .limit(limit)
    )
    return [(row.id, Status(row.status)) for row in tx.connection.execute(late)]


def batches_drained(tx: Transaction, *, limit: int) -> Sequence[str]:
    """Return batches in progress without an open Slice: whoever closed the last one died before it said so."""
    drained = select(batch.c.id).where(batch.c.status == Status.IN_PROGRESS.value, batch.c.open_slices == 0)
    return tx.connection.execute(drained.limit(limit)).scalars().all()


def finished_uncleared(tx: Transaction, *, limit: int) -> Sequence[Batch]:
    """Return final batches that still refer to their input."""
    final = batch.c.status.in_([status.value for status in FINAL])
    rows = tx.connection.execute(select(batch).where(final, batch.c.input_key.is_not(None)).limit(limit))
    return [_batch(row) for row in rows]


def clear_batch(tx: Transaction, *, batch_id: str) -> bool:
    """Let a final batch refer to its input and its Plan no more; False if another Sweeper did that already.

    Nobody owns it from then on: who died over it as it ended (expired while it was validated) has left its lease.
    Only whoever gets True may drop the references: dropped twice, they would be someone else's.
    """
    uncleared = update(batch).where(batch.c.id == batch_id, batch.c.input_key.is_not(None))
    nothing = dict.fromkeys(("input_key", "plan_key", "owner", "lease_until"))
    return tx.connection.execute(uncleared.values(nothing)).rowcount == 1


def _claimable(tx: Transaction, statuses: Sequence[Status], ready: ColumnElement[bool] | None) -> ColumnElement[bool]:
    return and_(
        batch.c.status.in_([s.value for s in statuses]),
        is_free(tx),
        or_(batch.c.retry_at.is_(None), batch.c.retry_at <= tx.lease_now),
        crashes(tx) < TRIES,
        true() if ready is None else ready,
    )


def _batch(row: Row[tuple[object, ...]]) -> Batch:
    usage = Usage(
        input_tokens=row.input_tokens,
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
        reasoning_tokens=row.reasoning_tokens,
    )
    return Batch(
        organisation_id=row.organisation_id,
        input_key=row.input_key,
        plan_key=row.plan_key,
        output_expires_after=row.output_expires_after,
        epoch=row.epoch,
        key_id=row.key_id,
        crashes=row.crashes,
        waiting=row.waiting,
        waiting_since=row.waiting_since,
        order_key=row.order_key,
        retry_group=row.retry_group,
        retries=row.retries,
        object=BatchObject(
            id=row.id,
            endpoint=row.endpoint,
            input_file_id=row.input_file_id,
            completion_window=row.completion_window,
            status=Status(row.status),
            **{name: getattr(row, name) for name in _TIMES},
            counts=Counts(completed=row.completed, failed=row.failed, total=row.total),
            output_file_id=row.output_file_id,
            error_file_id=row.error_file_id,
            metadata=None if row.metadata is None else msgspec.json.decode(row.metadata, type=dict[str, str]),
            errors=None if row.errors is None else msgspec.json.decode(row.errors, type=tuple[LineError, ...]),
            model=row.model,
            usage=usage if usage.input_tokens + usage.output_tokens else None,
            paused_at=row.paused_at,
            priority=row.priority,
            parent_id=row.parent_id,
        ),
    )
