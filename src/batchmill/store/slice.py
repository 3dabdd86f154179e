"""The rows of Slices and Segments: what a worker claims, and what it has made durable.

The fence is inside each writing statement: `epoch` counts the claims of a Slice, and only the last one may write.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from sqlalchemy import ColumnElement, Row, and_, bindparam, case, delete, exists, func, insert, or_, select, update

from batchmill.schedule.choose import Candidate
from batchmill.spec.states import Status
from batchmill.store.database import Transaction
from batchmill.store.tables import batch, organisation, segment, slice_

Fence = tuple[str, int, int]  # batch, ordinal and epoch: one claim of one Slice

Bitmap = bytes  # a bit a line: bit `i % 8` of byte `i // 8` is a Slice's i-th line

# What the death of an owner does to the row. Only who had sent the lone line can have died of it.
_CRASHED: Mapping[str, ColumnElement[int]] = MappingProxyType(
    {
        "crashes": slice_.c.crashes + 1,
        "alone_crashes": slice_.c.alone_crashes + case((slice_.c.alone_epoch == slice_.c.epoch, 1), else_=0),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A range of a batch's Plan, and which of its lines are done."""

    batch_id: str
    organisation_id: str
    ordinal: int
    model: str
    first: int
    lines: int
    bytes: int
    done: Bitmap
    epoch: int
    crashes: int = 0  # owners that died over it since its last commit
    alone: int | None = None  # the line that its last owner was sending with nothing else in flight
    alone_crashes: int = 0  # owners that died over that very line
    sent: Bitmap | None = None  # lines that may have been sent; None where nobody keeps account of that
    tokens: int | None = None  # of its lines, by estimate; None where nobody has noted it

    @property
    def fence(self) -> Fence:
        """What tells this claim of the Slice from every other."""
        return self.batch_id, self.ordinal, self.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """An extent of Results of one Slice in the blob of one group commit."""

    batch_id: str
    organisation_id: str
    slice: int
    seq: int
    blob_key: str
    offset: int
    bytes: int
    lines: int
    crc32: int


def insert_slices(tx: Transaction, slices: Iterable[Slice]) -> None:
    """Add a batch's Slices, all open and unowned; of a large one they are many, so the transaction takes its time."""
    tx.take_time()
    rows = [
        {
            "batch_id": s.batch_id,
            "organisation_id": s.organisation_id,
            "ordinal": s.ordinal,
            "model": s.model,
            "first": s.first,
            "lines": s.lines,
            "bytes": s.bytes,
            "tokens": s.tokens,
            "done": s.done,
            "open": True,
        }
        for s in slices
    ]
    tx.connection.execute(insert(slice_), rows)


def list_candidates(tx: Transaction, *, models: Collection[str], worker_id: str, limit: int) -> Sequence[Candidate]:
    """Return batches in progress that have a Slice for one of these models and are not paused.

    Each organisation's come by priority, then the nearest deadline first; where there are more than `limit`, no
    organisation's crowd out another's.
    """
    claimable = exists().where(slice_.c.batch_id == batch.c.id, _claimable(tx, models, worker_id))
    in_order = (batch.c.priority.desc(), batch.c.expires_at, batch.c.id)
    place = func.row_number().over(partition_by=batch.c.organisation_id, order_by=in_order)
    query = (
        select(
            batch.c.id,
            batch.c.organisation_id,
            batch.c.open_slices,
            batch.c.slice_tokens,
            batch.c.expires_at,
            batch.c.created_at,
            batch.c.priority,
            organisation.c.weight,
        )
        .join(organisation, organisation.c.id == batch.c.organisation_id)
        .where(batch.c.status == Status.IN_PROGRESS.value, batch.c.paused_at.is_(None), claimable)
        .where(or_(batch.c.retry_at.is_(None), batch.c.retry_at <= tx.lease_now))
        .order_by(place, batch.c.expires_at, batch.c.id)
        .limit(limit)
    )
    return [
        Candidate(
            batch_id=row.id,
            organisation=row.organisation_id,
            open_slices=row.open_slices,
            expires_at=row.expires_at,
            created_at=row.created_at,
            slice_tokens=row.slice_tokens,
            weight=row.weight or 1,
            priority=row.priority,
        )
        for row in tx.connection.execute(query)
    ]


def claim_slices(
    tx: Transaction, *, batch_id: str, count: int, models: Collection[str], worker_id: str, lease: float
) -> Sequence[tuple[Slice, bool]]:
    """Take the first `count` Slices for these models of a batch in progress that nobody holds: all by two statements.

    Of a paused batch none. A lapsed lease is nobody's. Returns each Slice and whether it was taken over: its last owner
    never gave it back, so it counts as a crash.
    """
    running = exists().where(
        batch.c.id == batch_id, batch.c.status == Status.IN_PROGRESS.value, batch.c.paused_at.is_(None)
    )
    free = and_(slice_.c.batch_id == batch_id, _claimable(tx, models, worker_id), running)
    first = (
        select(slice_.c.ordinal, slice_.c.owner)
        .where(free)
        .order_by(slice_.c.ordinal)
        .limit(count)
        .with_for_update(skip_locked=True)
    )
    found = {row.ordinal: row.owner is not None for row in tx.connection.execute(first)}
    if not found:
        return []
    was_held = slice_.c.owner.is_not(None)
    crashes = {name: case((was_held, more), else_=slice_.c[name]) for name, more in _CRASHED.items()}
    taken = (
        update(slice_)
        .where(free, slice_.c.ordinal.in_(found))
        .values(owner=worker_id, epoch=slice_.c.epoch + 1, lease_until=tx.lease_now + lease, **crashes)
        .returning(slice_)
    )
    claimed = sorted(map(_slice, tx.connection.execute(taken)), key=lambda held: held.ordinal)
    return [(held, found[held.ordinal]) for held in claimed]


def void_slices(tx: Transaction, *, worker_id: str) -> int:
    """End every Slice's lease but this worker's, as crashes of their owners; return how many there were."""
    held = update(slice_).where(slice_.c.owner.is_not(None), slice_.c.owner != worker_id)
    return tx.connection.execute(held.values(owner=None, lease_until=None, **_CRASHED)).rowcount


def mark_alone(tx: Transaction, *, batch_id: str, ordinal: int, epoch: int, line: int | None) -> bool:
    """Say that this line is about to be sent with nothing else in flight, None that it came back; False if fenced off.

    A worker that dies meanwhile leaves the mark behind: its next owner knows which line it was.
    """
    crashes = case((slice_.c.alone == line, slice_.c.alone_crashes), else_=0)
    mine = update(slice_).where(_mine(batch_id, ordinal, epoch), slice_.c.open)
    mark = {"alone": line, "alone_epoch": None if line is None else epoch, "alone_crashes": crashes}
    return tx.connection.execute(mine.values(mark)).rowcount == 1


def mark_sent(tx: Transaction, *, batch_id: str, ordinal: int, epoch: int, sent: Bitmap) -> bool:
    """Say which lines may have been sent from now on, before the first byte of them leaves; False if fenced off."""
    mine = update(slice_).where(_mine(batch_id, ordinal, epoch), slice_.c.open)
    return tx.connection.execute(mine.values(sent=sent)).rowcount == 1


# Built once: a group commit has one for each of its Slices.
_HELD = update(slice_).where(
    slice_.c.batch_id == bindparam("in_batch"),
    slice_.c.ordinal == bindparam("at"),
    slice_.c.epoch == bindparam("claimed"),
    slice_.c.open,
)
_RECORD = _HELD.values(done=bindparam("done"), crashes=0, alone=None, alone_epoch=None, alone_crashes=0)
_CLOSE = _RECORD.values(open=False, owner=None, lease_until=None)


def record_done(tx: Transaction, *, batch_id: str, ordinal: int, epoch: int, done: Bitmap, closed: bool) -> bool:
    """Write which lines of a Slice are done, while the claim's fence stands; False if it fell.

    A closed Slice has no owner. A commit ends the count of crashes: whatever killed its owners, work goes on.
    """
    mine = {"in_batch": batch_id, "at": ordinal, "claimed": epoch, "done": done}
    return tx.connection.execute(_CLOSE if closed else _RECORD, mine).rowcount == 1


def release_slice(
    tx: Transaction, *, batch_id: str, ordinal: int, epoch: int, sent: Bitmap | None = None, crashed: bool = False
) -> bool:
    """Give a Slice back with its holes, and with what was sent of it where that is kept; False if it was lost.

    `crashed` counts as an owner's death: its lines may be what felled a backend.
    """
    mine = update(slice_).where(_mine(batch_id, ordinal, epoch))
    lone = {"alone": None, "alone_epoch": None, "alone_crashes": 0}
    tx.ring()
    return (
        tx.connection.execute(
            mine.values(owner=None, lease_until=None, sent=sent, crashes=slice_.c.crashes + int(crashed), **lone)
        ).rowcount
        == 1
    )


def fence_slices(tx: Transaction, *, batch_id: str) -> None:
    """Take every open Slice of a closing batch from its runner: from now on no commit of it can slip in.

    Nobody owns it then: a Finalizer that fails leaves a batch that is settled still.
    """
    lock_slices(tx, and_(slice_.c.batch_id == batch_id, slice_.c.open))
    fenced = update(slice_).where(slice_.c.batch_id == batch_id, slice_.c.open)
    tx.connection.execute(fenced.values(owner=None, epoch=slice_.c.epoch + 1, lease_until=None))


def lock_slices(tx: Transaction, wanted: ColumnElement[bool]) -> None:
    """Wait for these Slices in the order in which group commits take theirs; the batches' rows come after them.

    One UPDATE takes its rows in any order: two would wait for each other, until PostgreSQL ends one.
    """
    if tx.connection.dialect.name == "postgresql":
        in_order = select(slice_.c.ordinal).where(wanted).order_by(slice_.c.batch_id, slice_.c.ordinal)
        tx.connection.execute(in_order.with_for_update(key_share=True)).all()


def list_slices(tx: Transaction, *, batch_id: str) -> Sequence[Slice]:
    """Return a batch's Slices in the order of the Plan."""
    query = select(slice_).where(slice_.c.batch_id == batch_id).order_by(slice_.c.ordinal)
    return [_slice(row) for row in tx.connection.execute(query)]


def insert_segments(tx: Transaction, segments: Iterable[Segment]) -> None:
    """Add the Segments of one group commit."""
    tx.connection.execute(
        insert(segment),
        [
            {
                "batch_id": s.batch_id,
                "organisation_id": s.organisation_id,
                "slice": s.slice,
                "seq": s.seq,
                "blob_key": s.blob_key,
                "offset": s.offset,
                "bytes": s.bytes,
                "lines": s.lines,
                "crc32": s.crc32,
            }
            for s in segments
        ],
    )


def list_segments(tx: Transaction, *, batch_id: str) -> Sequence[Segment]:
    """Return a batch's Segments, Slice by Slice, the oldest first."""
    query = select(segment).where(segment.c.batch_id == batch_id).order_by(segment.c.slice, segment.c.seq)
    return [segment_of_row(row) for row in tx.connection.execute(query)]


def segment_of_row(row: Row[tuple[object, ...]]) -> Segment:
    """Return the Segment that a whole row of the table stands for."""
    return Segment(
        batch_id=row.batch_id,
        organisation_id=row.organisation_id,
        slice=row.slice,
        seq=row.seq,
        blob_key=row.blob_key,
        offset=row.offset,
        bytes=row.bytes,
        lines=row.lines,
        crc32=row.crc32,
    )


def delete_slices(tx: Transaction, *, batch_id: str, limit: int) -> tuple[Sequence[tuple[str, int]], bool]:
    """Remove the first so many Slices of a final batch, and their Segments.

    Returns each blob that the Segments lay in with the references they held, and whether there are Slices left.
    Counted is what this very statement removed: of two Sweepers at the same batch one finds nothing.
    """
    mine = slice_.c.batch_id == batch_id
    last = select(slice_.c.ordinal).where(mine).order_by(slice_.c.ordinal).offset(limit - 1).limit(1)
    until = tx.connection.execute(last).scalar()
    gone = delete(segment).where(segment.c.batch_id == batch_id).returning(segment.c.blob_key)
    slices = delete(slice_).where(mine)
    if until is not None:
        gone = gone.where(segment.c.slice <= until)
        slices = slices.where(slice_.c.ordinal <= until)
    refs = Counter(tx.connection.execute(gone).scalars())
    tx.connection.execute(slices)
    return sorted(refs.items()), until is not None


def _claimable(tx: Transaction, models: Collection[str], worker_id: str) -> ColumnElement[bool]:
    # Not its own: a full disk lets a live worker's rows lapse, and what it holds of them would be in vain.
    lapsed = and_(slice_.c.lease_until < tx.lease_now, slice_.c.owner != worker_id)
    free = or_(slice_.c.owner.is_(None), lapsed)
    return and_(slice_.c.open, slice_.c.model.in_(models), free)


def _mine(batch_id: str, ordinal: int, epoch: int) -> ColumnElement[bool]:
    return and_(slice_.c.batch_id == batch_id, slice_.c.ordinal == ordinal, slice_.c.epoch == epoch)


def _slice(row: Row[tuple[object, ...]]) -> Slice:
    return Slice(
        batch_id=row.batch_id,
        organisation_id=row.organisation_id,
        ordinal=row.ordinal,
        model=row.model,
        first=row.first,
        lines=row.lines,
        bytes=row.bytes,
        done=bytes(row.done),
        epoch=row.epoch,
        crashes=row.crashes,
        alone=row.alone,
        alone_crashes=row.alone_crashes,
        sent=None if row.sent is None else bytes(row.sent),
        tokens=row.tokens,
    )
