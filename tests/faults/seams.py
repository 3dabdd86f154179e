"""The seams of a simulated worker, where a seed may delay it, stop it, kill it, or break what it calls."""

import asyncio
import errno
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import BinaryIO, Protocol, TypeVar

from batchmill.backends.backend import Call, Reply, Unreachable
from batchmill.blobs.blobs import Blobs, BlobWriter, Span, Written
from batchmill.schedule.retry import Fault
from batchmill.store.database import Database, DiskFull, Statements, Transaction
from faults.virtual import Killed, Process, VirtualClock, VirtualLoop

T = TypeVar("T")

LONGEST_DELAY = 1.0  # seconds
_DELAY = 0.1
_NO_ROOM_FOR_ROWS = 0.3  # the reserve is dropped for them, but not always in time
_LAST = 400  # events kept for people


class Trace:
    """What happened: counted by kind, hashed to compare two runs, the last of it kept for people."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._digest = blake2b(digest_size=16)
        self.counts: Counter[str] = Counter()
        self.last: deque[str] = deque(maxlen=_LAST)

    def note(self, kind: str, who: str = "", what: object = "") -> None:
        """Keep an event."""
        line = f"{self._loop.time():10.4f} {who:4} {kind} {what}"
        self.counts[kind] += 1
        self.last.append(line)
        self._digest.update(line.encode())

    def digest(self) -> str:
        """Return the hash of all events."""
        return self._digest.hexdigest()


class Fate:
    """What a seed has in store: each kind of fault has a rate (a chance at each crossing), while `active`."""

    def __init__(self, *, rng: random.Random, rates: Mapping[str, float], trace: Trace) -> None:
        self.rng = rng
        self.rates = rates
        self.trace = trace
        self.active = True
        self.disk_full = False
        self.outage = False

    def strikes(self, kind: str) -> bool:
        """Say whether a fault of this kind happens here and now."""
        rate = self.rates.get(kind, 0.0)
        return rate > 0 and self.active and self.rng.random() < rate

    def delay(self) -> float:
        """Return how long a crossing takes (seconds)."""
        if self.strikes("long delay"):
            self.trace.note("long delay")
            return self.rng.uniform(_DELAY, LONGEST_DELAY)
        return self.rng.uniform(0.0, _DELAY) if self.strikes("delay") else 0.0


class Nemesis(Protocol):
    """Whoever can kill and stop a process, and accounts for what that costs."""

    def kill(self, process: Process, place: str) -> None:
        """Kill it."""

    def stop(self, process: Process, place: str) -> None:
        """Stop it for more than a lease."""

    def committed(self) -> None:
        """Look at the rows: a transaction was committed."""

    def sends(self, process: Process, call: Call) -> None:
        """Look at a call that reaches the backend."""

    def bad_reply(self, call: Call) -> None:
        """Take down that a call got no result."""


class Seam:
    """One process's crossings."""

    def __init__(self, *, process: Process, fate: Fate, nemesis: Nemesis) -> None:
        self.process = process
        self.fate = fate
        self.nemesis = nemesis

    async def cross(self, place: str, kill: str) -> None:
        """Cross over: at once, late, after a stop, or never."""
        if self.fate.strikes(kill):
            self.nemesis.kill(self.process, f"{place}: {kill}")
            await asyncio.get_running_loop().create_future()
        if self.fate.strikes("stop"):
            self.nemesis.stop(self.process, place)
            await asyncio.sleep(0)
        delay = self.fate.delay()
        if delay:
            await asyncio.sleep(delay)

    def cross_blocking(self, place: str) -> None:
        """Cross over inside a blocking call: at once or never."""
        if self.process.dead:
            raise Killed
        if self.fate.strikes("kill inside"):
            self.nemesis.kill(self.process, f"{place}: kill inside")
            raise Killed


class SeamDatabase:
    """A process's way to the rows."""

    def __init__(self, *, database: Database, seam: Seam) -> None:
        self._database = database
        self._seam = seam

    async def read(self, statements: Statements[T]) -> T:
        """See `Database`."""
        return await asyncio.shield(asyncio.ensure_future(self._read(statements)))

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """See `Database`: what was begun is carried through although the caller is cancelled."""
        return await asyncio.shield(asyncio.ensure_future(self._write(statements, before)))

    async def close(self) -> None:
        """See `Database`; it is the world's, not the process's."""

    async def _read(self, statements: Statements[T]) -> T:
        await self._seam.cross("read", "kill before")
        found = await self._database.read(statements)
        await self._seam.cross("read", "kill after")
        return found

    async def _write(self, statements: Statements[T], before: Callable[[], None] | None) -> T:
        seam = self._seam

        def blob_then_nothing() -> None:
            if before is not None:
                before()
                seam.cross_blocking("blob written, no transaction")

        def all_but_commit(tx: Transaction) -> T:
            found = statements(tx)
            seam.cross_blocking("before COMMIT")
            return found

        await seam.cross("write", "kill before")
        if seam.fate.disk_full and seam.fate.rng.random() < _NO_ROOM_FOR_ROWS:
            seam.fate.trace.note("rows full", seam.process.name)
            raise DiskFull
        found = await self._database.write(all_but_commit, before=blob_then_nothing)
        seam.fate.trace.note("commit", seam.process.name)
        seam.nemesis.committed()
        await seam.cross("write", "kill after")
        if seam.fate.strikes("lost answer"):
            seam.fate.trace.note("lost answer", seam.process.name)
            raise ConnectionError("the answer to COMMIT was lost")
        return found


class SeamWriter:
    """A process's bytes on their way."""

    def __init__(self, *, writer: BlobWriter, seam: Seam) -> None:
        self._writer = writer
        self._seam = seam

    def write(self, data: bytes | memoryview) -> None:
        """See `BlobWriter`."""
        self._writer.write(data)

    def finish(self) -> Written:
        """See `BlobWriter`."""
        _refuse_when_full(self._seam)
        self._seam.cross_blocking("blob before fsync")
        written = self._writer.finish()
        self._seam.cross_blocking("blob after fsync")
        return written

    def discard(self) -> None:
        """See `BlobWriter`; the dead tidy nothing up."""
        if not self._seam.process.dead:
            self._writer.discard()


@dataclass(slots=True)
class Begun:
    """Every blob that was begun: when (virtual Unix seconds), and its writer, which the dead leave open."""

    at: dict[str, float] = field(default_factory=dict)
    writers: list[BlobWriter] = field(default_factory=list)


class SeamBlobs:
    """A process's way to the bytes."""

    def __init__(self, *, blobs: Blobs, seam: Seam, clock: VirtualClock, begun: Begun) -> None:
        self._blobs = blobs
        self._seam = seam
        self._clock = clock
        self._begun = begun

    @property
    def is_local(self) -> bool:
        """See `Blobs`."""
        return self._blobs.is_local

    def writer(self, key: str) -> SeamWriter:
        """See `Blobs`."""
        _refuse_when_full(self._seam)
        self._seam.cross_blocking("blob begun")
        self._begun.at[key] = self._clock.now()
        self._begun.writers.append(self._blobs.writer(key))
        return SeamWriter(writer=self._begun.writers[-1], seam=self._seam)

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
        self._seam.cross_blocking("blob deleted")
        self._blobs.delete(key)

    def keys(self, *, before: float) -> Iterator[str]:
        """See `Blobs`; the files' own times are the real world's."""
        present = self._blobs.keys(before=float("inf"))
        return iter(sorted(key for key in present if self._begun.at.get(key, 0.0) < before))


class SeamRoom:
    """A process's look at the space on the disk: not always in time."""

    def __init__(self, *, seam: Seam) -> None:
        self._seam = seam

    def short(self) -> str | None:
        """See `Room`."""
        fate = self._seam.fate
        return "the disk is full" if fate.disk_full and fate.rng.random() < 0.5 else None

    def keep(self) -> None:
        """See `Room`."""

    def give(self) -> None:
        """See `Room`."""


class SeamBackend:
    """A process's way to the one model server there is."""

    name = "sim:"

    def __init__(self, *, seam: Seam, models: tuple[str, ...]) -> None:
        self._seam = seam
        self._models = models

    async def models(self) -> tuple[str, ...]:
        """See `Backend`."""
        await self._seam.cross("models", "kill before")
        if self._seam.fate.outage:
            raise Unreachable("connection refused")
        return self._models

    async def gauges(self) -> None:
        """See `Backend`."""

    async def send(self, call: Call) -> Reply:
        """See `Backend`. Before anything else, the witness takes the call down."""
        seam, rng = self._seam, self._seam.fate.rng
        seam.nemesis.sends(seam.process, call)
        await asyncio.sleep(rng.uniform(0.05, 0.6))
        await seam.cross("send", "kill after")
        bad = self._bad_reply()
        if bad is not None:
            seam.fate.trace.note(f"backend {bad.fault or bad.status}", seam.process.name)
            seam.nemesis.bad_reply(call)
            if bad.fault is Fault.TIMEOUT:
                await asyncio.sleep(rng.uniform(1.0, 5.0))
            return bad
        return Reply(status=200, body=b'{"choices":[],"id":"%b"}' % call.request_id.encode())

    async def close(self) -> None:
        """See `Backend`."""

    def _bad_reply(self) -> Reply | None:
        fate = self._seam.fate
        if fate.outage:
            refused = fate.rng.random() < 0.5
            return Reply(fault=Fault.UNREACHABLE) if refused else Reply(status=503, body=b"{}", retry_after=1.0)
        for kind, reply in _BAD_REPLIES.items():
            if fate.strikes(kind):
                return reply
        return None


_BAD_REPLIES = {
    "reset": Reply(fault=Fault.RESET),
    "timeout": Reply(fault=Fault.TIMEOUT),
    "garbled": Reply(fault=Fault.GARBLED, body=b"<html>"),
    "pressure": Reply(status=429, body=b"{}", retry_after=2.0),
    "bad gateway": Reply(status=502, body=b"{}"),
}


def _refuse_when_full(seam: Seam) -> None:
    if seam.fate.disk_full:
        seam.fate.trace.note("disk full", seam.process.name)
        raise OSError(errno.ENOSPC, "No space left on device")
