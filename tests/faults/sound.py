"""What holds of every store at every moment, read from its rows and its bytes."""

import hashlib
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from batchmill.ledger.segment import unpack_results
from engine.mill import Mill

Connection = sqlite3.Connection


def check_sound(mill: Mill) -> None:
    """Rows and bytes agree: nothing is half there, counts are bitmaps are Segments, and references are what refers."""
    path = mill.folder / "rows.sqlite3"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as rows:
        rows.row_factory = sqlite3.Row
        assert [tuple(row) for row in rows.execute("PRAGMA integrity_check")] == [("ok",)]
        assert rows.execute("PRAGMA foreign_key_check").fetchall() == []
        if rows.execute("SELECT 1 FROM sqlite_master WHERE name = 'blob'").fetchone():
            _check_blobs(rows, mill)
            _check_files(rows)
            for batch in rows.execute("SELECT * FROM batch"):
                _check_batch(rows, mill, batch)


def check_clean(mill: Mill) -> None:
    """After the janitor's period: what is on the disk is what the rows refer to, and nothing else."""
    with closing(sqlite3.connect(f"file:{mill.folder / 'rows.sqlite3'}?mode=ro", uri=True)) as rows:
        states = dict(rows.execute("SELECT key, state FROM blob"))
    assert set(states.values()) <= {"ready"}, f"not swept: {states}"
    assert {path.name for path in bytes_of(mill)} == set(states)


def bytes_of(mill: Mill) -> list[Path]:
    """Return every file that holds bytes, half-written ones too."""
    return list((mill.folder / "blobs").glob("*/*"))


def _check_blobs(rows: Connection, mill: Mill) -> None:
    refs = Counter[str]()
    for sql in (
        "SELECT blob_key FROM file",
        "SELECT input_key FROM batch WHERE input_key IS NOT NULL",
        "SELECT plan_key FROM batch WHERE plan_key IS NOT NULL",
        "SELECT order_key FROM batch WHERE order_key IS NOT NULL",
        "SELECT blob_key FROM segment",
    ):
        refs.update(key for (key,) in rows.execute(sql))
    ready: dict[str, Any] = {row["key"]: row for row in rows.execute("SELECT * FROM blob WHERE state = 'ready'")}
    assert {key: row["refs"] for key, row in ready.items()} == dict(refs), "references are not what refers"
    for key, row in ready.items():
        data = mill.blobs.read(key, offset=0, length=row["bytes"])
        with mill.blobs.open(key) as stream:
            assert len(stream.read()) == row["bytes"], f"{key}: more bytes than its row says"
        assert row["sha256"] in (None, hashlib.sha256(data).hexdigest()), f"{key}: other bytes than its row says"


def _check_files(rows: Connection) -> None:
    odd = "SELECT file.id FROM file LEFT JOIN blob ON blob.key = blob_key AND blob.state = 'ready'"
    assert rows.execute(f"{odd} WHERE blob.bytes IS NOT file.bytes").fetchall() == []


def _check_batch(rows: Connection, mill: Mill, batch: sqlite3.Row) -> None:
    """Counts, bitmaps and Segments of a batch say the same, and its result Files are there."""
    done = batch["completed"] + batch["failed"]
    slices = rows.execute("SELECT * FROM slice WHERE batch_id = ?", (batch["id"],)).fetchall()
    if batch["plan_key"] is not None and batch["status"] in ("in_progress", "finalizing", "cancelling"):
        assert sum(held["lines"] for held in slices) == batch["total"]
        assert sum(held["open"] for held in slices) == batch["open_slices"]
        assert sum(_check_slice(rows, mill, held) for held in slices) == done
    for kind, count in (("output", batch["completed"]), ("error", batch["failed"])):
        if batch["status"] in ("completed", "expired", "cancelled"):
            file_id = batch[f"{kind}_file_id"]
            assert (file_id is None) == (count == 0)
            found = rows.execute("SELECT count(*) FROM file WHERE id = ?", (file_id,)).fetchone()
            assert found[0] == (count > 0)


def _check_slice(rows: Connection, mill: Mill, held: sqlite3.Row) -> int:
    """Return how many lines of a Slice are done: its bitmap's, which are its Segments'."""
    bits = int.from_bytes(held["done"], "little")
    mine = "SELECT * FROM segment WHERE batch_id = ? AND slice = ?"
    indexes: list[int] = []
    for segment in rows.execute(mine, (held["batch_id"], held["ordinal"])):
        data = mill.blobs.read(segment["blob_key"], offset=segment["offset"], length=segment["bytes"])
        found = [result.index for result in unpack_results(data, crc32=segment["crc32"])]
        assert len(found) == segment["lines"]
        indexes += found
    assert sorted(indexes) == [i for i in range(held["lines"]) if bits >> i & 1], "bitmap and Segments differ"
    assert bool(held["open"]) == (bits != (1 << held["lines"]) - 1)
    return len(indexes)
