"""Copies a whole store while it is worked on: the rows of one snapshot, and all bytes that they refer to."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchmill.blobs.blobs import BlobMissing, Blobs
from batchmill.store.copy import copy_rows
from batchmill.store.database import Database

_CHUNK = 1 << 20
_ROUNDS = 20  # each has less to copy than the last: two or three are usual on a busy server


class TooBusy(Exception):  # noqa: N818 - it states what is so
    """Whatever was copied, some of its bytes were removed meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a copy holds, and after how many looks at the rows it was whole."""

    blobs: int
    bytes: int
    rounds: int


async def copy_store(
    *, database: Database, blobs: Blobs, into: Blobs, rows: Path, tell: Callable[[str], None]
) -> Copied:
    """Copy to `into` and, the rows, to the file `rows`, each durably.

    A blob may go between the copy of the rows and its own: then the rows are copied again, and what they need more.
    Bytes are removed after their row is doomed, so if the new rows still need bytes that were not there, these are
    lost: they are left out, for an audit of the copy to name.

    Raises:
        TooBusy: it never came to an end.
        OSError: there is no room, or something cannot be read.
    """
    copied: set[str] = set()
    gone: set[str] = set()
    for number in range(1, _ROUNDS + 1):
        await asyncio.to_thread(rows.unlink, missing_ok=True)
        needed = await database.read(lambda tx: copy_rows(tx, path=rows))
        lost = gone & needed.keys()
        todo = sorted(needed.keys() - copied - lost)
        tell(f"Round {number}: rows copied; {len(todo)} blobs, {sum(needed[key] for key in todo)} bytes to copy.")
        gone = set(lost)
        for key in todo:
            if await asyncio.to_thread(_copy, blobs, into, key):
                copied.add(key)
            else:
                gone.add(key)
        if gone == lost:
            for key in copied - needed.keys():
                await asyncio.to_thread(into.delete, key)
            return Copied(blobs=len(needed) - len(lost), bytes=sum(needed.values()), rounds=number)
    raise TooBusy(f"after {_ROUNDS} rounds there are still bytes that were removed while they were to be copied")


def _copy(source: Blobs, into: Blobs, key: str) -> bool:
    """Copy one blob durably; False if it is gone."""
    try:
        stream = source.open(key)
    except BlobMissing:
        return False
    writer = into.writer(key)
    try:
        with stream:
            while chunk := stream.read(_CHUNK):
                writer.write(chunk)
        writer.finish()
    finally:
        writer.discard()
    return True
