"""What an audit asks of the rows: pages of blobs, a batch with what hangs on it, and what rows say of each other."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Row, exists, func, select, text, union_all

from batchmill.store.batch import Batch, batches_by_id
from batchmill.store.blob import is_copy
from batchmill.store.database import Transaction
from batchmill.store.file import File, file_of_row
from batchmill.store.slice import Segment, Slice, list_segments, list_slices
from batchmill.store.tables import batch, blob, file, segment, slice_, worker


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRow:
    """What the rows say of some bytes; `sha256` is null for a group commit's."""

    key: str
    state: str
    bytes: int
    sha256: str | None
    refs: int
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """A batch and all that hangs on it, from one snapshot.

    `input_key` (of the bytes as they were uploaded) and `plan_bytes` are null where there is no such blob (any more);
    `files` holds the result Files that exist, by kind (`output`, `error`); `open` the ordinals of open Slices.
    """

    batch: Batch
    open_slices: int
    input_key: str | None
    plan_bytes: int | None
    slices: Sequence[Slice]
    open: frozenset[int]
    segments: Sequence[Segment]
    files: dict[str, File]


def database_faults(tx: Transaction) -> Sequence[str]:
    """Return what SQLite finds wrong with its own file and its references; PostgreSQL has no such question."""
    if tx.connection.dialect.name != "sqlite":
        return []
    damage = [row[0] for row in tx.connection.execute(text("PRAGMA integrity_check")) if row[0] != "ok"]
    dangling = [
        f"row {row[1]} of {row[0]} refers to a row of {row[2]} that is not there"
        for row in tx.connection.execute(text("PRAGMA foreign_key_check"))
    ]
    return damage + dangling


def list_blobs(tx: Transaction, *, after: str, limit: int) -> Sequence[BlobRow]:
    """Return at most `limit` blobs beyond the key `after`, in the order of their keys."""
    query = select(blob).where(blob.c.key > after).order_by(blob.c.key).limit(limit)
    return [_blob(row) for row in tx.connection.execute(query)]


def find_blob(tx: Transaction, *, key: str) -> BlobRow | None:
    """Return the row of a key as it is now."""
    row = tx.connection.execute(select(blob).where(blob.c.key == key)).first()
    return None if row is None else _blob(row)


def wrong_refs(tx: Transaction) -> Sequence[tuple[str, int, int]]:
    """Return the blobs whose `refs` is not the number of rows that point at them: key, refs, that number."""
    pointing = union_all(
        select(file.c.blob_key.label("key")),
        select(batch.c.input_key).where(batch.c.input_key.is_not(None)),
        select(batch.c.plan_key).where(batch.c.plan_key.is_not(None)),
        select(batch.c.order_key).where(batch.c.order_key.is_not(None)),
        select(segment.c.blob_key),
    ).subquery()
    counted = select(pointing.c.key, func.count().label("rows")).group_by(pointing.c.key).subquery()
    number = func.coalesce(counted.c.rows, 0)
    query = (
        select(blob.c.key, blob.c.refs, number)
        .select_from(blob.outerjoin(counted, counted.c.key == blob.c.key))
        .where(blob.c.refs != number)
        .order_by(blob.c.key)
    )
    return [(key, refs, count) for key, refs, count in tx.connection.execute(query)]


def missing_blobs(tx: Transaction) -> Sequence[tuple[str, str]]:
    """Return who points at a key that has no ready row: a batch's or a File's id, and the key."""
    pointing = union_all(
        select(batch.c.id, batch.c.input_key.label("key")).where(batch.c.input_key.is_not(None)),
        select(batch.c.id, batch.c.plan_key).where(batch.c.plan_key.is_not(None)),
        select(batch.c.id, batch.c.order_key).where(batch.c.order_key.is_not(None)),
        select(segment.c.batch_id, segment.c.blob_key).distinct(),
        select(file.c.id, file.c.blob_key),
    ).subquery()
    ready = exists().where(blob.c.key == pointing.c.key, blob.c.state == "ready")
    return [(who, key) for who, key in tx.connection.execute(select(pointing.c.id, pointing.c.key).where(~ready))]


def wrong_sizes(tx: Transaction) -> Sequence[tuple[str, int, int]]:
    """Return the Files that say another size than their bytes' row: id, and both numbers."""
    query = select(file.c.id, file.c.bytes, blob.c.bytes).join(blob, blob.c.key == file.c.blob_key)
    return [(i, mine, its) for i, mine, its in tx.connection.execute(query.where(file.c.bytes != blob.c.bytes))]


def lost_owners(tx: Transaction) -> Sequence[tuple[str, str]]:
    """Return batches that are held, they or a Slice of theirs, by workers of which there is no row: batch, worker."""
    held = union_all(select(batch.c.id, batch.c.owner), select(slice_.c.batch_id, slice_.c.owner)).subquery()
    known = exists().where(worker.c.id == held.c.owner)
    query = select(held.c.id, held.c.owner).where(held.c.owner.is_not(None), ~known).distinct()
    return [(batch_id, owner) for batch_id, owner in tx.connection.execute(query)]


def count_rows(tx: Transaction) -> int:
    """Return the number of rows of Files, blobs, batches, Slices and Segments."""
    tables = (file, blob, batch, slice_, segment)
    return sum(tx.connection.execute(select(func.count()).select_from(t)).scalar_one() for t in tables)


def list_batch_ids(tx: Transaction, *, after: str, limit: int) -> Sequence[str]:
    """Return at most `limit` ids of batches beyond `after`, in their order."""
    query = select(batch.c.id).where(batch.c.id > after).order_by(batch.c.id).limit(limit)
    return tx.connection.execute(query).scalars().all()


def read_batch(tx: Transaction, *, batch_id: str) -> BatchRows | None:
    """Return a batch with all that hangs on it."""
    found = batches_by_id(tx, batch_ids=[batch_id]).get(batch_id)
    if found is None:
        return None
    facts = found.object
    open_slices = tx.connection.execute(select(batch.c.open_slices).where(batch.c.id == batch_id)).scalar_one()
    still_open = select(slice_.c.ordinal).where(slice_.c.batch_id == batch_id, slice_.c.open)
    ids = {"output": facts.output_file_id, "error": facts.error_file_id}
    files = _files(tx, [facts.input_file_id, *(i for i in ids.values() if i)])
    source = files.get(facts.input_file_id)
    return BatchRows(
        batch=found,
        open_slices=open_slices,
        input_key=source.blob_key if source else None if is_copy(found.input_key) else found.input_key,
        plan_bytes=tx.connection.execute(select(blob.c.bytes).where(blob.c.key == found.plan_key)).scalar(),
        slices=list_slices(tx, batch_id=batch_id),
        open=frozenset(tx.connection.execute(still_open).scalars()),
        segments=list_segments(tx, batch_id=batch_id),
        files={kind: files[i] for kind, i in ids.items() if i in files},
    )


def _files(tx: Transaction, ids: Collection[str]) -> dict[str, File]:
    rows = tx.connection.execute(select(file).where(file.c.id.in_(ids)))
    return {row.id: file_of_row(row) for row in rows}


def _blob(row: Row[tuple[object, ...]]) -> BlobRow:
    return BlobRow(
        key=row.key, state=row.state, bytes=row.bytes, sha256=row.sha256, refs=row.refs, created_at=row.created_at
    )
