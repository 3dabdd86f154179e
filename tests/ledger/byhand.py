"""A store changed by hand, past all walls, as faults and other processes change it."""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from batchmill.blobs.blobs import Blobs, BlobWriter, Span
from engine.mill import Mill

_BATCHES = {
    "RUNNING": "(SELECT id FROM batch WHERE status = 'in_progress')",
    "DONE": "(SELECT id FROM batch WHERE status = 'completed' AND input_key IS NULL)",
}


class Meanwhile:
    """Blobs with which something happens whenever one is about to be read: `happens` gets its key."""

    def __init__(self, blobs: Blobs, happens: Callable[[str], None]) -> None:
        self._blobs = blobs
        self._happens = happens

    def open(self, key: str) -> BinaryIO:
        """See `Blobs`."""
        self._happens(key)
        return self._blobs.open(key)

    def read(self, key: str, *, offset: int, length: int) -> bytes:
        """See `Blobs`."""
        return self._blobs.read(key, offset=offset, length=length)

    def read_spans(self, key: str, spans: Sequence[Span]) -> list[bytes]:
        """See `Blobs`."""
        return self._blobs.read_spans(key, spans)

    def scratch(self) -> BinaryIO:
        """See `Blobs`."""
        return self._blobs.scratch()

    def keys(self, *, before: float) -> Iterator[str]:
        """See `Blobs`."""
        return self._blobs.keys(before=before)

    def writer(self, key: str) -> BlobWriter:
        """See `Blobs`."""
        return self._blobs.writer(key)

    def delete(self, key: str) -> None:
        """See `Blobs`."""
        self._blobs.delete(key)


async def batches(mill: Mill, status: str) -> list[str]:
    """Return the batches in a status."""
    return [i for (i,) in query(mill, "SELECT id FROM batch WHERE status = ? ORDER BY id", status)]


def query(mill: Mill, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Read rows by hand; `RUNNING` and `DONE` stand for the batches that are."""
    with closing(sqlite3.connect(mill.folder / "rows.sqlite3")) as connection:
        return connection.execute(_named(sql), values).fetchall()


def change(mill: Mill, sql: str, *values: object) -> int:
    """Change rows by hand, past all walls that can be passed; return how many."""
    with closing(sqlite3.connect(mill.folder / "rows.sqlite3", isolation_level=None)) as connection:
        return connection.execute(_named(sql), values).rowcount


def _named(sql: str) -> str:
    for name, ids in _BATCHES.items():
        sql = sql.replace(name, ids)
    return sql


def delete_file(mill: Mill, file_id: str) -> None:
    """Delete a File and, if nothing else needs them, its bytes."""
    ((key,),) = query(mill, "SELECT blob_key FROM file WHERE id = ?", file_id)
    change(mill, "DELETE FROM file WHERE id = ?", file_id)
    change(mill, "UPDATE blob SET refs = refs - 1 WHERE key = ?", key)
    if query(mill, "SELECT refs FROM blob WHERE key = ?", key) == [(0,)]:
        mill.blobs.delete(str(key))
        change(mill, "DELETE FROM blob WHERE key = ?", key)


def rewrite(mill: Mill, change_lines: Callable[[list[bytes]], list[bytes]]) -> None:
    """Write other lines into the output file of the batch that is done, with rows that agree."""
    sql = "SELECT blob_key FROM file WHERE id = (SELECT output_file_id FROM batch WHERE id IN DONE)"
    ((key,),) = query(mill, sql)
    path = dict(stored(mill))[str(key)]
    before = path.read_bytes().splitlines(keepends=True)
    data = b"".join(change_lines(before))
    assert data != b"".join(before)
    path.write_bytes(data)
    size, digest = len(data), hashlib.sha256(data).hexdigest()
    change(mill, "UPDATE blob SET bytes = ?, sha256 = ? WHERE key = ?", size, digest, key)
    change(mill, "UPDATE file SET bytes = ? WHERE blob_key = ?", size, key)


def stored(mill: Mill) -> Iterator[tuple[str, Path]]:
    """Yield each key with the path of its bytes."""
    return ((path.name, path) for path in (mill.folder / "blobs").glob("*/*"))


def put(blobs: Blobs, key: str) -> None:
    """Write bytes that no row knows."""
    writer = blobs.writer(key)
    writer.write(b"lost")
    writer.finish()


def age(path: Path, at: float) -> None:
    """Let a file have been written at that time."""
    os.utime(path, (at, at))
