"""The bytes of a File, gone on with where an answer broke off."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from batchmill.client.failure import Failed, Refused
from batchmill.client.http import Client
from batchmill.client.patience import Patience

_PART, _NO_MORE = 206, 416


async def content_of(client: Client, file_id: str, *, patience: Patience, start: int = 0) -> AsyncIterator[bytes]:
    """Yield the bytes of a File from `start` on, each once, however often the answer breaks off.

    A File's bytes never change. A server that knows no ranges sends them all again, and those before are passed over.

    Raises:
        Refused: there is no such File.
        Unreachable: the server is away for too long.
    """
    at = start
    while True:
        headers = {"Range": f"bytes={at}-"} if at else {}
        try:
            async with client.open("GET", f"/files/{file_id}/content", headers=headers) as answer:
                passed = at if answer.status != _PART else 0
                async for chunk in answer.chunks():
                    fresh = chunk[passed:]
                    passed -= len(chunk) - len(fresh)
                    if fresh:
                        patience.there()
                        at += len(fresh)
                        yield fresh
                return
        except Failed as fault:
            if at and isinstance(fault, Refused) and fault.status == _NO_MORE:  # it broke off behind the last byte
                return
            await patience.wait(fault)


async def fetch(
    client: Client, file_id: str, path: Path, *, size: int | None, patience: Patience, told: Callable[[int], None]
) -> bool:
    """Keep a File at `path`, which appears when it is whole; return whether it was fetched, and not there before.

    What an earlier try has of it, beside `path`, is gone on with.

    Args:
        client: Who asks.
        file_id: Which File.
        path: Where to.
        size: Its bytes; None if nobody says.
        patience: With a server that is away.
        told: The bytes that are there.

    Raises:
        Failed: fewer or more bytes came than it has.
        OSError: they cannot be written.
    """
    if size is not None and _bytes(path) == size:
        return False
    part = path.with_name(f".{path.name}.{file_id}.part")
    at = _bytes(part)
    if size is None or at > size:
        at = 0
    with part.open("r+b" if at else "wb") as stream:
        stream.seek(at)
        if at != size:
            async for chunk in content_of(client, file_id, patience=patience, start=at):
                stream.write(chunk)
                at += len(chunk)
                told(at)
        stream.flush()
        os.fsync(stream.fileno())
    if size is not None and at != size:
        part.unlink()
        raise Failed(f"The server sends {at:,} bytes of {file_id}, which has {size:,}.")
    settle(part, path)
    return True


def settle(part: Path, path: Path) -> None:
    """Give a file that is whole and durable its name, durably."""
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _bytes(path: Path) -> int:
    """Return the size of a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0
