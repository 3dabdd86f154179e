"""A copy of a store that is worked on: whole, of one snapshot, and with nothing too much."""

import itertools
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from batchmill.blobs.disk import DiskBlobs
from batchmill.ledger.copy import Copied, TooBusy, copy_store
from engine.mill import Mill, lines
from ledger.byhand import Meanwhile, change, delete_file, put, query, stored


@pytest.fixture
async def mill(tmp_path: Path) -> AsyncIterator[Mill]:
    """A store with three done batches and one that runs."""
    made = await Mill.build(tmp_path)
    hand = made.hand(made.echo())
    for _ in range(3):
        await made.finish(hand, await made.batch(lines(20)))
    while await made.sweeper.step():
        pass
    await made.batch(lines(10))
    await hand.validator.step()
    yield made
    await made.database.close()


async def copy(mill: Mill, happens: Callable[[str], None] = lambda _key: None) -> Copied:
    """Copy the store while this happens."""
    return await copy_store(
        database=mill.database,
        blobs=Meanwhile(mill.blobs, happens),
        into=DiskBlobs(folder=mill.folder / "copy"),
        rows=mill.folder / "copy.sqlite3",
        tell=lambda _line: None,
    )


def copied(mill: Mill) -> dict[str, bytes]:
    """Return the bytes in the copy."""
    return {path.name: path.read_bytes() for path in (mill.folder / "copy").glob("*/*")}


def needed(mill: Mill) -> set[str]:
    """Return the keys of ready blobs that the copied rows know."""
    with closing(sqlite3.connect(mill.folder / "copy.sqlite3")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {key for (key,) in connection.execute("SELECT key FROM blob WHERE state = 'ready'")}


def file_of(mill: Mill, key: str) -> str:
    """Return the File whose bytes these are; "" if there is none."""
    return next((i for (i,) in query(mill, "SELECT id FROM file WHERE blob_key = ?", key)), "")


async def test_a_store_at_rest_is_copied_in_one_round(mill: Mill) -> None:
    """All bytes that rows refer to are copied as they are; bytes that no row knows are not."""
    expected = {key: path.read_bytes() for key, path in stored(mill)}
    put(mill.blobs, "upload_orphan")
    done = await copy(mill)
    assert copied(mill) == expected
    assert needed(mill) == expected.keys()
    assert done == Copied(blobs=len(expected), bytes=sum(map(len, expected.values())), rounds=1)


async def test_bytes_that_go_meanwhile_cost_one_more_round(mill: Mill) -> None:
    """When Files go during the copy, it is taken again: no row lacks its bytes, and no bytes lack their row."""
    outputs = sorted(key for (key,) in query(mill, "SELECT blob_key FROM file WHERE purpose = 'batch_output'"))
    first, _, last = outputs

    def happens(opened: str) -> None:
        if opened == last and file_of(mill, last):
            delete_file(mill, file_of(mill, first))  # its bytes have been copied
            delete_file(mill, file_of(mill, last))

    done = await copy(mill, happens)
    assert done.rounds == 2
    assert needed(mill) == copied(mill).keys() == {key for key, _ in stored(mill)}
    assert not {first, last} & needed(mill)


async def test_what_is_added_meanwhile_comes_with_the_last_round(mill: Mill) -> None:
    """Bytes that the first rows did not know are in the copy if the last ones know them."""
    (gone,) = (key for (key,) in query(mill, "SELECT blob_key FROM file WHERE purpose = 'batch_output' LIMIT 1"))

    def happens(opened: str) -> None:
        if opened == gone and file_of(mill, gone):
            delete_file(mill, file_of(mill, gone))
            add_file(mill, "upload_new")

    done = await copy(mill, happens)
    assert done.rounds == 2
    assert copied(mill)["upload_new"] == b"lost"
    assert needed(mill) == copied(mill).keys()


async def test_bytes_that_are_lost_do_not_stop_the_rest(mill: Mill) -> None:
    """Bytes that rows promise for good and nobody has are left out; all others are copied."""
    key, path = next((key, path) for key, path in stored(mill) if file_of(mill, key))
    path.unlink()
    done = await copy(mill)
    assert done.rounds == 2
    assert needed(mill) - copied(mill).keys() == {key}


async def test_a_store_that_never_rests_is_told(mill: Mill) -> None:
    """When every round finds bytes gone again, the copy ends with a sentence and not never."""
    numbers = itertools.count()

    def happens(opened: str) -> None:
        if opened.startswith("upload") and file_of(mill, opened):
            add_file(mill, f"upload_new-{next(numbers)}")
            change(mill, "UPDATE batch SET input_key = NULL WHERE input_key = ?", opened)
            change(mill, "UPDATE blob SET refs = 1 WHERE key = ?", opened)
            delete_file(mill, file_of(mill, opened))

    with pytest.raises(TooBusy, match="20 rounds"):
        await copy(mill, happens)


def add_file(mill: Mill, key: str) -> None:
    """Add a File with its bytes."""
    put(mill.blobs, key)
    row = "INSERT INTO blob (key, state, bytes, refs, created_at) VALUES (?, 'ready', 4, 1, 1)"
    change(mill, row, key)
    change(
        mill,
        "INSERT INTO file (id, organisation_id, blob_key, filename, purpose, bytes, created_at)"
        " SELECT ?, id, ?, 'new', 'batch', 4, 1 FROM organisation LIMIT 1",
        f"file_{key}",
        key,
    )
