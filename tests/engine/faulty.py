"""Faults and interruptions at a chosen moment, around the real disk, the real database and the echo backend."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import BinaryIO, TypeVar

from batchmill.backends.backend import Call, Reply
from batchmill.backends.echo import EchoBackend
from batchmill.blobs.blobs import Blobs, BlobWriter, Span, Written
from batchmill.schedule.retry import Fault
from batchmill.store.database import Database, DiskFull, Statements
from engine.mill import Mill, Watched

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

    @property
    def is_local(self) -> bool:
        """See `Blobs`."""
        return self._blobs.is_local

    def writer(self, key: str) -> "FaultyWriter":
        """See `Blobs`."""
        return FaultyWriter(self, key, self._blobs.writer(key))

    def open(self, key: str) -> BinaryIO:
        """See `Blobs`."""
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


class HangingDatabase:
    """Rows whose group commits hang while `goes` is not set."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.goes = asyncio.Event()
        self.goes.set()
        self.hanging = 0

    async def read(self, statements: Statements[T]) -> T:
        """See `Database`."""
        return await self._database.read(statements)

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """See `Database`."""
        if before is not None:  # bytes go with the rows: a group commit
            self.hanging += 1
            await self.goes.wait()
            self.hanging -= 1
        return await self._database.write(statements, before=before)

    async def close(self) -> None:
        """See `Database`."""
        await self._database.close()


class Falling(Watched):
    """A watched echo backend that answers some lines, by their number in the input, with faults first."""

    def __init__(
        self,
        mill: Mill,
        faults: dict[int, list[Fault]],
        *,
        latency: float = 0.0,
        models: tuple[str, ...] = ("echo",),
        name: str = "echo:",
    ) -> None:
        super().__init__(EchoBackend(clock=mill.clock, latency=latency, models=models), name=name)
        self._faults = faults
        self.sends: list[int] = []

    async def send(self, call: Call) -> Reply:
        """See `Backend`."""
        number = int(call.body.partition(b"hi ")[2].partition(b'"')[0])
        self.sends.append(number)
        faults = self._faults.get(number, [])
        reply = await super().send(call)
        return Reply(fault=faults.pop(0), detail="felled") if faults else reply


class Full:
    """Room that is there or not, as a test says."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.given = 0

    def short(self) -> str | None:
        """See `Room`."""
        return self.reason

    def keep(self) -> None:
        """See `Room`."""

    def give(self) -> None:
        """See `Room`."""
        self.given += 1


class Busy(Watched):
    """A watched backend that answers every line with a 429 and asks for a minute's patience."""

    async def send(self, call: Call) -> Reply:
        """See `Backend`."""
        await super().send(call)
        return Reply(status=429, body=b"{}", retry_after=60.0)
