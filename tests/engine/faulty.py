"""Faults and interruptions at a chosen moment, around the real disk and the real database."""

import os
from collections.abc import Awaitable, Callable, Iterator
from typing import BinaryIO, TypeVar

from batchmill.blobs.blobs import Blobs, BlobWriter, Written
from batchmill.store.database import Database, DiskFull, Statements

T = TypeVar("T")


class FaultyBlobs:
    """Blobs whose writes to keys with `where` in them fail from the `after`-th on, while `number` is an errno."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self.number: int | None = None
        self.where = ""
        self.after = 0
        self.then: Callable[[], None] | None = None  # called when a write fails

    def fault(self, key: str) -> None:
        """Fail, if this write is to."""
        if self.number is not None and self.where in key:
            if self.after <= 0:
                if self.then is not None:
                    self.then()
                raise OSError(self.number, os.strerror(self.number))
            self.after -= 1

    def writer(self, key: str) -> "FaultyWriter":
        """See `Blobs`."""
        return FaultyWriter(self, key, self._blobs.writer(key))

    def open(self, key: str) -> BinaryIO:
        """See `Blobs`."""
        return self._blobs.open(key)

    def read(self, key: str, *, offset: int, length: int) -> bytes:
        """See `Blobs`."""
        return self._blobs.read(key, offset=offset, length=length)

    def delete(self, key: str) -> None:
        """See `Blobs`."""
        self._blobs.delete(key)

    def keys(self, *, before: float) -> Iterator[str]:
        """See `Blobs`."""
        return self._blobs.keys(before=before)


class FaultyWriter:
    """Bytes on their way to such a disk; making them durable counts as a write, too."""

    def __init__(self, blobs: FaultyBlobs, key: str, writer: BlobWriter) -> None:
        self._blobs = blobs
        self._key = key
        self._writer = writer

    def write(self, data: bytes | memoryview) -> None:
        """See `BlobWriter`."""
        self._blobs.fault(self._key)
        self._writer.write(data)

    def finish(self) -> Written:
        """See `BlobWriter`."""
        self._blobs.fault(self._key)
        return self._writer.finish()

    def discard(self) -> None:
        """See `BlobWriter`."""
        self._writer.discard()


class FaultyDatabase:
    """Rows that cannot be written while `full`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.full = False

    def fill(self) -> None:
        """Have no room from now on."""
        self.full = True

    async def read(self, statements: Statements[T]) -> T:
        """See `Database`."""
        return await self._database.read(statements)

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """See `Database`."""
        if self.full:
            raise DiskFull
        return await self._database.write(statements, before=before)

    async def close(self) -> None:
        """See `Database`."""
        await self._database.close()


class InterruptedDatabase:
    """Rows where something else happens right before the `at`-th call, counted from 0."""

    def __init__(self, database: Database, *, at: int, happens: Callable[[], Awaitable[object]]) -> None:
        self._database = database
        self._at = at
        self._happens = happens

    async def _interrupt(self) -> None:
        self._at -= 1
        if self._at == -1:
            await self._happens()

    async def read(self, statements: Statements[T]) -> T:
        """See `Database`."""
        await self._interrupt()
        return await self._database.read(statements)

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """See `Database`."""
        await self._interrupt()
        return await self._database.write(statements, before=before)

    async def close(self) -> None:
        """See `Database`."""
        await self._database.close()
