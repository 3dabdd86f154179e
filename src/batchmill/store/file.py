"""The rows of Files. Every statement names the organisation: an id of another is an unknown id (invariant S1)."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Delete, Row, Select, delete, func, insert, select, update

from batchmill.spec.objects import FileObject
from batchmill.store.database import Transaction
from batchmill.store.tables import batch, error_group, file


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A File: what its organisation sees of it, and where its bytes are."""

    organisation_id: str
    blob_key: str
    object: FileObject


def insert_file(tx: Transaction, added: File) -> None:
    """Add a File; its blob is published in the same transaction."""
    facts = added.object
    tx.connection.execute(
        insert(file).values(
            id=facts.id,
            organisation_id=added.organisation_id,
            blob_key=added.blob_key,
            filename=facts.filename,
            purpose=facts.purpose,
            bytes=facts.bytes,
            created_at=facts.created_at,
            expires_at=facts.expires_at,
        )
    )


def find_file(tx: Transaction, *, organisation_id: str, file_id: str, now: int) -> File | None:
    """Return a File of the organisation that has not expired."""
    row = tx.connection.execute(_visible(organisation_id, now).where(file.c.id == file_id)).first()
    return None if row is None else file_of_row(row)


def list_files(
    tx: Transaction,
    *,
    organisation_id: str,
    now: int,
    purpose: str | None,
    after: str | None,
    ascending: bool,
    limit: int,
) -> Sequence[File]:
    """Return at most `limit` Files beyond the id `after`, newest first unless `ascending`."""
    query = _visible(organisation_id, now).limit(limit)
    if purpose is not None:
        query = query.where(file.c.purpose == purpose)
    if after is not None:
        query = query.where(file.c.id > after if ascending else file.c.id < after)
    query = query.order_by(file.c.id if ascending else file.c.id.desc())
    return [file_of_row(row) for row in tx.connection.execute(query)]


def count_files(tx: Transaction, *, organisation_id: str, purpose: str) -> tuple[int, int]:
    """Return how many Files of this purpose the organisation has, and their bytes."""
    query = select(func.count(), func.coalesce(func.sum(file.c.bytes), 0)).where(
        file.c.organisation_id == organisation_id, file.c.purpose == purpose
    )
    count, size = tx.connection.execute(query).one()
    return int(count), int(size)


def delete_file(tx: Transaction, *, organisation_id: str, file_id: str) -> str | None:
    """Remove a File's row; return the key whose reference it held, or None if there was no such File."""
    gone = delete(file).where(file.c.organisation_id == organisation_id, file.c.id == file_id)
    return next(iter(_delete(tx, gone)), None)


def has_expired(tx: Transaction, *, now: int) -> bool:
    """Say whether any File has expired."""
    return tx.connection.execute(select(file.c.id).where(file.c.expires_at <= now).limit(1)).first() is not None


def delete_expired(tx: Transaction, *, now: int, limit: int) -> Sequence[str]:
    """Remove the rows of expired Files; return the keys whose references they held."""
    expired = select(file.c.id).where(file.c.expires_at <= now).limit(limit)
    return _delete(tx, delete(file).where(file.c.id.in_(expired)))


def _delete(tx: Transaction, gone: Delete) -> Sequence[str]:
    """Delete Files, and the messages that were kept of them as examples; return the keys of their blobs."""
    rows = tx.connection.execute(gone.returning(file.c.id, file.c.blob_key)).all()
    if rows:
        failed = select(batch.c.id).where(batch.c.error_file_id.in_([row.id for row in rows]))
        tx.connection.execute(update(error_group).where(error_group.c.batch_id.in_(failed)).values(example=None))
    return [row.blob_key for row in rows]


def _visible(organisation_id: str, now: int) -> Select[tuple[object, ...]]:
    return select(file).where(
        file.c.organisation_id == organisation_id, file.c.expires_at.is_(None) | (file.c.expires_at > now)
    )


def file_of_row(row: Row[tuple[object, ...]]) -> File:
    """Return the File that a whole row of the table stands for."""
    return File(
        organisation_id=row.organisation_id,
        blob_key=row.blob_key,
        object=FileObject(
            id=row.id,
            bytes=row.bytes,
            created_at=row.created_at,
            filename=row.filename,
            purpose=row.purpose,
            expires_at=row.expires_at,
        ),
    )
