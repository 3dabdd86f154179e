"""The statements over Files."""

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from batchmill.spec.groups import ErrorGroup
from batchmill.spec.objects import FileObject
from batchmill.spec.progress import Errors
from batchmill.spec.states import Status
from batchmill.store.database import Database, SqliteDatabase, Transaction
from batchmill.store.file import (
    File,
    count_files,
    delete_expired,
    delete_file,
    find_file,
    has_expired,
    insert_file,
    list_files,
)
from batchmill.store.progress import add_errors
from batchmill.store.tables import batch, error_group
from store.rows import MINE, NOW, THEIRS, a_batch, add_batch, add_blob, add_organisations
from store.test_slice import plan_of


@pytest.fixture(autouse=True)
async def _organisations(database: Database) -> None:
    await database.write(add_organisations)


def a_file(
    file_id: str = "file_1", *, organisation_id: str = MINE, purpose: str = "batch", expires_at: int | None = None
) -> File:
    """Return a File whose bytes are under a key of its own."""
    return File(
        organisation_id=organisation_id,
        blob_key=f"{file_id}-bytes",
        object=FileObject(
            id=file_id,
            bytes=3_000_000_000,
            created_at=NOW,
            filename="提示.jsonl",
            purpose=purpose,
            expires_at=expires_at,
        ),
    )


def add(tx: Transaction, *files: File) -> None:
    """Add Files with their blobs."""
    for file in files:
        add_blob(tx, file.blob_key)
        insert_file(tx, file)


def find(tx: Transaction, file_id: str = "file_1", *, organisation_id: str = MINE, now: int = NOW) -> File | None:
    """Find a File."""
    return find_file(tx, organisation_id=organisation_id, file_id=file_id, now=now)


def page(
    tx: Transaction,
    *,
    organisation_id: str = MINE,
    now: int = NOW,
    purpose: str | None = None,
    after: str | None = None,
    ascending: bool = False,
) -> list[str]:
    """List at most two Files by id."""
    found = list_files(
        tx,
        organisation_id=organisation_id,
        now=now,
        purpose=purpose,
        after=after,
        ascending=ascending,
        limit=2,
    )
    return [file.object.id for file in found]


async def test_a_file_comes_back_as_it_was_added(database: Database) -> None:
    """Every fact of a File is kept, sizes beyond 32 bits included."""
    await database.write(lambda tx: add(tx, a_file(expires_at=NOW + 1)))
    assert await database.read(find) == a_file(expires_at=NOW + 1)


async def test_a_file_needs_its_blob(database: Database) -> None:
    """A File whose bytes have no row is refused by the database itself."""
    with pytest.raises(IntegrityError):
        await database.write(lambda tx: insert_file(tx, a_file()))


async def test_a_file_of_another_organisation_is_unknown(database: Database) -> None:
    """An id of another organisation is not found, listed, counted or deleted."""
    await database.write(lambda tx: add(tx, a_file()))
    assert await database.read(lambda tx: find(tx, organisation_id=THEIRS)) is None
    assert await database.read(lambda tx: page(tx, organisation_id=THEIRS)) == []
    assert await database.read(lambda tx: count_files(tx, organisation_id=THEIRS, purpose="batch")) == (0, 0)
    assert await database.write(lambda tx: delete_file(tx, organisation_id=THEIRS, file_id="file_1")) is None
    assert await database.read(find) is not None


async def test_files_are_listed_in_either_order(database: Database) -> None:
    """A page goes on beyond its cursor, newest first or oldest first, of one purpose or of all."""
    files = [a_file(f"file_{n}", purpose="batch" if n % 2 else "batch_output") for n in range(1, 6)]
    await database.write(lambda tx: add(tx, *files))
    assert await database.read(page) == ["file_5", "file_4"]
    assert await database.read(lambda tx: page(tx, after="file_4")) == ["file_3", "file_2"]
    assert await database.read(lambda tx: page(tx, ascending=True)) == ["file_1", "file_2"]
    assert await database.read(lambda tx: page(tx, ascending=True, after="file_4")) == ["file_5"]
    assert await database.read(lambda tx: page(tx, purpose="batch_output")) == ["file_4", "file_2"]


async def test_files_of_a_purpose_are_counted(database: Database) -> None:
    """The number of an organisation's Files of one purpose and the sum of their bytes."""
    await database.write(lambda tx: add(tx, a_file("file_1"), a_file("file_2"), a_file("file_3", purpose="other")))
    counted = await database.read(lambda tx: count_files(tx, organisation_id=MINE, purpose="batch"))
    assert counted == (2, 6_000_000_000)


async def test_deleting_a_file_gives_its_key_once(database: Database) -> None:
    """Whoever deletes a File gets the key whose reference it held; a second delete gets nothing."""
    await database.write(lambda tx: add(tx, a_file()))
    for key in ("file_1-bytes", None):
        assert await database.write(lambda tx: delete_file(tx, organisation_id=MINE, file_id="file_1")) == key


async def test_an_expired_file_is_not_there(database: Database) -> None:
    """From its last second on a File is neither found nor listed, and its row may be removed."""
    await database.write(lambda tx: add(tx, a_file(expires_at=NOW + 10), a_file("file_2")))
    assert await database.read(lambda tx: find(tx, now=NOW + 9)) is not None
    assert not await database.read(lambda tx: has_expired(tx, now=NOW + 9))
    assert await database.read(lambda tx: find(tx, now=NOW + 10)) is None
    assert await database.read(lambda tx: page(tx, now=NOW + 10)) == ["file_2"]
    assert await database.read(lambda tx: has_expired(tx, now=NOW + 10))
    for keys in (["file_1-bytes"], []):
        assert await database.write(lambda tx: delete_expired(tx, now=NOW + 10, limit=9)) == keys


async def test_expired_files_are_removed_a_few_at_a_time(database: Database) -> None:
    """At most `limit` rows go in one statement."""
    await database.write(lambda tx: add(tx, *(a_file(f"file_{n}", expires_at=NOW) for n in range(3))))
    removed = [await database.write(lambda tx: delete_expired(tx, now=NOW, limit=2)) for _ in range(3)]
    assert [len(keys) for keys in removed] == [2, 1, 0]


async def test_no_message_of_a_failed_line_outlives_its_file(database: Database) -> None:
    """Whether it is deleted or expires: the batch keeps the groups and their counts, without an example."""

    def statements(tx: Transaction) -> list[dict[str, str | None]]:
        add(tx, a_file("file_1"), a_file("file_2", expires_at=NOW), a_file("file_3"))
        errors = [Errors(group=ErrorGroup("g", 400, "c", "m"), count=1, custom_ids=("a",), example="whole")]
        for number in (1, 2, 3):
            name = f"batch_{number}"
            add_batch(tx, a_batch(name), status=Status.COMPLETED)
            tx.connection.execute(update(batch).where(batch.c.id == name).values(error_file_id=f"file_{number}"))
            add_errors(tx, batch_id=name, organisation_id=MINE, errors=errors)
        seen = []
        for step in (
            lambda: delete_file(tx, organisation_id=THEIRS, file_id="file_1"),
            lambda: delete_file(tx, organisation_id=MINE, file_id="file_1"),
            lambda: delete_expired(tx, now=NOW, limit=9),
        ):
            step()
            rows = tx.connection.execute(select(error_group.c.batch_id, error_group.c.example))
            seen.append({row.batch_id: row.example for row in rows})
        return seen

    kept = {"batch_1": "whole", "batch_2": "whole", "batch_3": "whole"}
    first = kept | {"batch_1": None}
    assert await database.write(statements) == [kept, first, first | {"batch_2": None}]


async def test_the_batch_of_a_file_is_found_by_an_index(database: Database) -> None:
    """On SQLite no deletion reads all batches, or all error groups, there ever were."""
    if not isinstance(database, SqliteDatabase):  # PostgreSQL chooses by statistics
        return

    def statements(tx: Transaction) -> list[str]:
        add(tx, a_file())
        return plan_of(tx, lambda tx: delete_file(tx, organisation_id=MINE, file_id="file_1"))

    plan = await database.write(statements)
    assert not any(step.startswith("SCAN") for step in plan), plan
    assert any("ix_batch_error_file (error_file_id=?)" in step for step in plan), plan
