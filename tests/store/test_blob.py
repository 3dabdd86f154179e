"""The life of a blob's row: writing, ready, doomed, gone."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from batchmill.store.blob import (
    BlobGone,
    blob_bytes,
    delete_blobs,
    doom_blob,
    doom_stale,
    doomed_keys,
    drop_refs,
    insert_ready,
    insert_writing,
    known_keys,
    publish_blob,
    refer,
)
from batchmill.store.database import Database, Transaction
from store.rows import MINE, NOW, add_blob, add_organisations, blobs_by_key


@pytest.fixture(autouse=True)
async def _organisations(database: Database) -> None:
    await database.write(add_organisations)


def add_all(tx: Transaction) -> None:
    """Add a blob in each state."""
    add_blob(tx, "writing", state="writing", refs=0)
    add_blob(tx, "ready", refs=1)
    add_blob(tx, "doomed", state="doomed", refs=0)


async def test_a_blob_is_announced_then_published(database: Database) -> None:
    """Bytes are `writing` before they exist, and `ready` with one reference and their size once durable."""
    await database.write(lambda tx: insert_writing(tx, key="k", organisation_id=MINE, now=NOW))
    assert await database.read(blobs_by_key) == {"k": ("writing", 0)}
    await database.write(lambda tx: publish_blob(tx, key="k", size=5_000_000_000, sha256="ab"))
    assert await database.read(blobs_by_key) == {"k": ("ready", 1)}
    assert await database.read(lambda tx: blob_bytes(tx, key="k")) == 5_000_000_000


@pytest.mark.parametrize("key", ["ready", "doomed", "unknown"])
async def test_only_announced_bytes_are_published(database: Database, key: str) -> None:
    """A writer who comes too late, twice, or unannounced gets BlobGone, and nothing changes."""
    await database.write(add_all)
    before = await database.read(blobs_by_key)
    with pytest.raises(BlobGone):
        await database.write(lambda tx: publish_blob(tx, key=key, size=1, sha256="ab"))
    assert await database.read(blobs_by_key) == before


async def test_a_key_is_announced_once(database: Database) -> None:
    """A second row of the same key is refused."""
    await database.write(add_all)
    with pytest.raises(IntegrityError):
        await database.write(lambda tx: insert_writing(tx, key="ready", organisation_id=MINE, now=NOW))


async def test_the_last_reference_dooms(database: Database) -> None:
    """References are added and dropped; with the last one the blob is doomed."""

    def statements(tx: Transaction) -> list[tuple[str, int]]:
        insert_ready(tx, key="k", organisation_id=None, size=9, refs=3, now=NOW)
        refer(tx, key="k")
        seen = [blobs_by_key(tx)["k"]]
        for count in (3, 1):
            drop_refs(tx, key="k", count=count)
            seen.append(blobs_by_key(tx)["k"])
        return seen

    assert await database.write(statements) == [("ready", 4), ("ready", 1), ("doomed", 0)]


@pytest.mark.parametrize("key", ["writing", "doomed", "unknown"])
async def test_only_a_ready_blob_is_referred_to(database: Database, key: str) -> None:
    """A reference to bytes that are going, or not there yet, raises BlobGone."""
    await database.write(add_all)
    with pytest.raises(BlobGone):
        await database.write(lambda tx: refer(tx, key=key))


@pytest.mark.parametrize(("key", "count"), [("writing", 1), ("doomed", 1), ("unknown", 1), ("ready", 2)])
async def test_a_reference_that_is_not_there_cannot_be_dropped(database: Database, key: str, count: int) -> None:
    """Dropping more references than there are raises BlobGone: they would be someone else's."""
    await database.write(add_all)
    before = await database.read(blobs_by_key)
    with pytest.raises(BlobGone):
        await database.write(lambda tx: drop_refs(tx, key=key, count=count))
    assert await database.read(blobs_by_key) == before


async def test_only_half_written_bytes_are_given_up(database: Database) -> None:
    """Giving up says True for bytes being written, and leaves ready ones as they are."""

    def statements(tx: Transaction) -> list[bool]:
        add_all(tx)
        return [doom_blob(tx, key=key) for key in ("writing", "writing", "ready", "unknown")]

    assert await database.write(statements) == [True, False, False, False]
    assert (await database.read(blobs_by_key))["ready"] == ("ready", 1)


async def test_stale_writings_are_given_up(database: Database) -> None:
    """Writings that began before a time are doomed and counted; ready blobs of that age are not."""
    await database.write(add_all)
    assert await database.write(lambda tx: doom_stale(tx, created_before=NOW)) == 0
    assert await database.write(lambda tx: doom_stale(tx, created_before=NOW + 1)) == 1
    assert sorted(await database.read(lambda tx: doomed_keys(tx, limit=9))) == ["doomed", "writing"]
    assert len(await database.read(lambda tx: doomed_keys(tx, limit=1))) == 1


async def test_only_doomed_rows_are_forgotten(database: Database) -> None:
    """Of the keys whose bytes are gone only the doomed ones lose their row; forgetting twice is no error."""
    await database.write(add_all)
    for _ in range(2):
        await database.write(lambda tx: delete_blobs(tx, keys=["doomed", "ready", "unknown"]))
    assert set(await database.read(blobs_by_key)) == {"ready", "writing"}


async def test_bytes_with_a_row_are_known(database: Database) -> None:
    """A key is known in every state; all others are garbage."""
    await database.write(add_all)
    keys = iter(["writing", "ready", "doomed", "unknown"])
    assert await database.read(lambda tx: known_keys(tx, keys=keys)) == {"writing", "ready", "doomed"}
    assert await database.read(lambda tx: known_keys(tx, keys=[])) == frozenset()


@pytest.mark.parametrize("change", ["UPDATE blob SET state = 'lost'", "UPDATE blob SET refs = -1"])
async def test_the_database_itself_guards_a_blob(database: Database, change: str) -> None:
    """An unknown state or fewer references than none are refused by the database itself."""
    await database.write(add_all)
    with pytest.raises(IntegrityError):
        await database.write(lambda tx: tx.connection.execute(text(change)))
