"""How long closing a large batch takes, beside `cp` of the same bytes: half done and cancelled or expired, and full.

    python bench/closing.py --lines 1000000

The batch is made with the Ledger itself, in group commits of 256 results over four Slices at a time, about a Runner's.
Closing is what the Finalizer does from the moment when no call is open any more; clearing is what the Sweeper does
afterwards, with its longest transaction, for which every other writer waits.
"""

import asyncio
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from figure import Figure, arguments, report
from made import MODEL, Made

from batchmill.backends.router import Router
from batchmill.blobs.space import Boundless
from batchmill.clock import SystemClock
from batchmill.engine.finalizer import Finalizer
from batchmill.engine.sweeper import Sweeper
from batchmill.ledger.ledger import Claim, Ledger, Portion
from batchmill.ledger.segment import Result
from batchmill.spec.results import answered, result_id
from batchmill.spec.states import FINAL, Event, Status
from batchmill.store.batch import advance, batches_by_id
from batchmill.store.database import SqliteDatabase, Statements, Transaction
from batchmill.telemetry import Metrics

T = TypeVar("T")

_REPLY = b'{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"%s"}}]}'
_TEXT = b"It depends on what you mean by that. " * 5
_GROUP = "Closing"
_AT_ONCE = 4  # Slices in one commit
_LEASE = 3600.0


class _Timed(SqliteDatabase):
    """SQLite that remembers its longest writing transaction."""

    longest = 0.0

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        def timed(tx: Transaction) -> T:
            began = time.perf_counter()
            try:
                return statements(tx)
            finally:
                self.longest = max(self.longest, time.perf_counter() - began)

        return await super().write(timed, before=before)


class _Bench:
    """A batch at a time, made, half or wholly answered, and closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.database = _Timed(path=folder / "rows.sqlite3", clock=SystemClock())
        self.made = Made(folder, database=self.database)
        self._room = Boundless()

    async def run(self, lines: int, done: float, event: Event | None) -> list[Figure]:
        """Make a batch, of whose Slices so many are done, let the event happen, and close it."""
        batch_id = await self.made.batch(lines)
        await self._answer(batch_id, round(lines * done))
        if event is not None:
            now = int(self.made.clock.now()) + 7200 * (event is Event.WINDOW_PASSED)
            await self.database.write(
                lambda tx: advance(tx, batch_id=batch_id, status=Status.IN_PROGRESS, event=event, now=now)
            )
        finalizer = Finalizer(
            worker_id="bench",
            lease=_LEASE,
            database=self.database,
            blobs=self.made.blobs,
            room=self._room,
            clock=self.made.clock,
        )
        began, cpu = time.perf_counter(), time.process_time()
        await finalizer.step()
        closed, cpu = time.perf_counter() - began, time.process_time() - cpu
        batch = (await self.database.read(lambda tx: batches_by_id(tx, batch_ids=[batch_id])))[batch_id]
        if batch.object.status not in FINAL:
            raise SystemExit(f"not closed: {batch.object.status}, {batch.waiting}")
        size, copied, synced = self._copy(batch_id)
        self.database.longest, began = 0.0, time.perf_counter()
        sweeper = Sweeper(
            router=Router([]), database=self.database, blobs=self.made.blobs, room=self._room, clock=self.made.clock
        )
        while await sweeper.step():
            pass
        cleared = time.perf_counter() - began
        print(
            f"{batch.object.status:>10} {lines:>9,} lines {size / 1e6:>6.0f} MB: "
            f"closed in {closed:5.2f} s ({cpu:.2f} s of CPU), cp {copied:5.2f} s (its fsync {synced:.2f} s); "
            f"cleared in {cleared:5.2f} s, longest transaction {self.database.longest * 1000:.0f} ms"
        )
        what = f"{lines:,} lines, {batch.object.status}{'' if done == 1 else ' half done'}"
        return [
            Figure(group=_GROUP, name=f"seconds / (5 s + 2 x cp), {what}", value=closed / (5 + 2 * copied), goal=1.0),
            Figure(
                group=_GROUP,
                name=f"longest transaction of clearing, {what}",
                value=self.database.longest * 1000,
                unit="ms",
                note="Every other writer waits for so long.",
            ),
        ]

    def _copy(self, batch_id: str) -> tuple[int, float, float]:
        """Copy the result files; return their bytes and the seconds of the copy and of making it durable."""
        paths = [p for p in (self._folder / "blobs").rglob(f"{batch_id}-*") if p.name.endswith(("output", "error"))]
        target = self._folder / "copies"
        target.mkdir(exist_ok=True)
        began = time.perf_counter()
        subprocess.run(["/bin/cp", *map(str, paths), str(target)], check=True)
        copied = time.perf_counter() - began
        for path in target.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            path.unlink()
        synced = time.perf_counter() - began - copied
        return sum(path.stat().st_size for path in paths), copied, synced

    async def _answer(self, batch_id: str, lines: int) -> None:
        """Answer so many lines, in commits that each hold a part of several Slices."""
        ledger = Ledger(
            database=self.database,
            blobs=self.made.blobs,
            clock=self.made.clock,
            worker_id="bench",
            lease=_LEASE,
            metrics=Metrics(),
        )
        while lines > 0 and (claims := await ledger.claim(slices=_AT_ONCE, models=[MODEL])):
            for part in range(_AT_ONCE):
                await ledger.commit([_portion(batch_id, claim, part) for claim in claims])
            lines -= sum(claim.slice.lines for claim in claims)


def _portion(batch_id: str, claim: Claim, part: int) -> Portion:
    """Return the results of every fourth line of a Slice; one in a hundred lines failed."""
    lines = claim.slice.lines
    results = [
        Result(
            index=index,
            succeeded=index % 100 != 0,
            attempts=1,
            text=answered(
                result_id(batch_id, claim.records[index].line),
                b'"request-%d"' % (claim.records[index].line - 1),
                200,
                "req_0123456789abcdef",
                _REPLY % _TEXT,
            ),
        )
        for index in range(part, lines, _AT_ONCE)
    ]
    bits = sum(1 << index for index in range(lines) if index % _AT_ONCE <= part)
    done = bits.to_bytes((lines + 7) // 8, "little")
    return Portion(slice=claim.slice, results=results, done=done, closed=part == _AT_ONCE - 1)


async def _figures(lines: int, folder: Path) -> list[Figure]:
    bench = _Bench(folder)
    await bench.made.prepare()
    figures: list[Figure] = []
    for done, event in ((0.5, Event.CANCEL), (0.5, Event.WINDOW_PASSED), (1.0, None)):
        figures += await bench.run(lines, done, event)
    await bench.database.close()
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, the making included")
    return figures


def main() -> None:
    """Close three batches and print the figures."""
    options = arguments(__doc__)
    options.add_argument("--lines", type=int, default=1_000_000)
    options.add_argument("--folder", type=Path, help="where the disk to be measured is; default: the temporary folder")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        report(asyncio.run(_figures(chosen.lines, Path(folder))), chosen.json)


if __name__ == "__main__":
    main()
