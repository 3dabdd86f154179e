"""The rows of blobs: which bytes exist, who needs them, which are going.

A row is `writing` before its first byte exists, `ready` from the transaction that first refers to it, `doomed` before
its bytes are removed. Each move names the state it leaves, so a late commit fails instead of pointing at nothing.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import case, delete, insert, select, update

from batchmill.store.database import Transaction
from batchmill.store.tables import blob

_COPY = "-lines"  # ends the key of a copy


class BlobGone(Exception):  # noqa: N818 - it states what happened
    """The bytes were given up, or never announced: whoever wants to write or refer to them comes too late."""


def copy_key(batch_id: str, *, epoch: int) -> str:
    """Return the key of a batch's lines in the Plan's order: if they are copied, its `input_key` from then on."""
    return f"{batch_id}-{epoch}{_COPY}"


def is_copy(key: str | None) -> bool:
    """Say whether a batch's `input_key` is of such a copy, not of the bytes as they were uploaded."""
    return key is not None and key.endswith(_COPY)


def insert_writing(tx: Transaction, *, key: str, organisation_id: str, now: int) -> None:
    """Announce bytes that are about to be written."""
    added = insert(blob).values(key=key, organisation_id=organisation_id, created_at=now)
    tx.connection.execute(added.values(state="writing", bytes=0, refs=0))


def insert_ready(tx: Transaction, *, key: str, organisation_id: str | None, size: int, refs: int, now: int) -> None:
    """Add bytes that are durable already: a group commit's."""
    added = insert(blob).values(key=key, organisation_id=organisation_id, created_at=now)
    tx.connection.execute(added.values(state="ready", bytes=size, refs=refs))


def publish_blob(tx: Transaction, *, key: str, size: int, sha256: str) -> None:
    """Turn written, durable bytes into a blob with one reference.

    Raises:
        BlobGone: the Sweeper doomed the row in the meantime.
    """
    done = tx.connection.execute(
        update(blob)
        .where(blob.c.key == key, blob.c.state == "writing")
        .values(state="ready", bytes=size, sha256=sha256, refs=1)
    )
    if done.rowcount != 1:
        raise BlobGone(key)


def refer(tx: Transaction, *, key: str) -> None:
    """Add a reference to a ready blob.

    Raises:
        BlobGone: nothing refers to it any more, and it is going.
    """
    done = tx.connection.execute(
        update(blob).where(blob.c.key == key, blob.c.state == "ready", blob.c.refs > 0).values(refs=blob.c.refs + 1)
    )
    if done.rowcount != 1:
        raise BlobGone(key)


def drop_refs(tx: Transaction, *, key: str, count: int = 1) -> None:
    """Drop references; the last one dooms the blob in the same statement.

    Raises:
        BlobGone: nothing referred to it any more: somebody dropped what was not theirs.
    """
    state = case((blob.c.refs == count, "doomed"), else_=blob.c.state)
    ready = update(blob).where(blob.c.key == key, blob.c.state == "ready", blob.c.refs >= count)
    if tx.connection.execute(ready.values(refs=blob.c.refs - count, state=state)).rowcount != 1:
        raise BlobGone(key)


def doom_blob(tx: Transaction, *, key: str) -> bool:
    """Give up bytes that were being written; False if they are not in that state (any more)."""
    done = tx.connection.execute(
        update(blob).where(blob.c.key == key, blob.c.state == "writing").values(state="doomed")
    )
    return done.rowcount == 1


def doom_stale(tx: Transaction, *, created_before: int) -> int:
    """Give up all bytes whose writing began before this time; return how many."""
    done = tx.connection.execute(
        update(blob).where(blob.c.state == "writing", blob.c.created_at < created_before).values(state="doomed")
    )
    return done.rowcount


def doomed_keys(tx: Transaction, *, limit: int) -> Sequence[str]:
    """Return keys whose bytes are to be removed."""
    return tx.connection.execute(select(blob.c.key).where(blob.c.state == "doomed").limit(limit)).scalars().all()


def delete_blobs(tx: Transaction, *, keys: Iterable[str]) -> None:
    """Forget doomed blobs whose bytes are gone."""
    tx.connection.execute(delete(blob).where(blob.c.key.in_(list(keys)), blob.c.state == "doomed"))


def blob_bytes(tx: Transaction, *, key: str) -> int:
    """Return the size of a blob that something refers to."""
    return int(tx.connection.execute(select(blob.c.bytes).where(blob.c.key == key)).scalar_one())


def blob_sha256(tx: Transaction, *, key: str) -> str | None:
    """Return the SHA-256 of a blob, in hex; None where it was not kept (a group commit's)."""
    sha256: str | None = tx.connection.execute(select(blob.c.sha256).where(blob.c.key == key)).scalar_one()
    return sha256


def known_keys(tx: Transaction, *, keys: Iterable[str]) -> frozenset[str]:
    """Return those of the keys that have a row: bytes without one are garbage."""
    return frozenset(tx.connection.execute(select(blob.c.key).where(blob.c.key.in_(list(keys)))).scalars())
