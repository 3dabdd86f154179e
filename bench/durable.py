"""What a line costs on its whole durable path, beside a bare aiohttp loop: read, send, judge, segment, commit.

    python bench/durable.py

The Runner of the product with its Ledger, SQLite, disk and Transport sends a batch of 1 KB lines to a compiled server
on a core of its own, which answers with 700 bytes; the reference sends as many raw bytes with aiohttp on uvloop. Each
figure is of a fresh process, and they take turns. CPU is that of the whole process, its threads included, from the
first claim until the batch has drained. `unsynced` is the same without waiting for the disk.
"""

import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop
from dispatch import bare, stub
from figure import Figure, arguments, report
from made import MODEL, Made
from sqlalchemy import event

from batchmill.backends.http import HttpBackend
from batchmill.backends.router import Router
from batchmill.backends.wire import WireTransport
from batchmill.blobs.space import Boundless
from batchmill.cli.process import spare_garbage_collection
from batchmill.engine.feed import Feed
from batchmill.engine.group import GroupBounds
from batchmill.engine.lanes import Lane, Lanes
from batchmill.engine.lease import Lease
from batchmill.engine.loop import Bell
from batchmill.engine.runner import Runner
from batchmill.engine.sender import Sender
from batchmill.ledger.ledger import Ledger
from batchmill.schedule.pace import Pace
from batchmill.spec.states import Status
from batchmill.store.batch import batches_by_id
from batchmill.store.database import SqliteDatabase
from batchmill.telemetry import Metrics

BODY = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % (b"x" * 970)
_LEASE = 3600.0
_REFERENCE = "bare aiohttp @256"
# name: lines, in flight, whether the disk is waited for
_CONTESTANTS = {
    _REFERENCE: (20_000, 256, True),
    "durable @64": (60_000, 64, True),
    "durable @256": (60_000, 256, True),
    "durable @4096": (240_000, 4096, True),
    "unsynced @256": (60_000, 256, False),
}
# ours, theirs, of what, the goal
_FIGURES = (
    ("durable @256", _REFERENCE, "us", 0.40),
    ("durable @4096", "durable @64", "us", 1.25),
    ("durable @256", "unsynced @256", "per_second", 0.90),
)


async def _reference(url: str, lines: int, in_flight: int) -> None:
    async with bare(url) as send:

        async def repeat(count: int) -> None:
            for _ in range(count):
                await send()

        await asyncio.gather(*(repeat(lines // in_flight) for _ in range(in_flight)))


async def drain(made: Made, batch_id: str, url: str, in_flight: int, bounds: GroupBounds | None = None) -> None:
    """Send a whole batch with the product's own Runner, and return when it has drained."""
    metrics, clock = Metrics(), made.clock
    transport = WireTransport(clock=clock, max_reply_bytes=1 << 24)
    backend = HttpBackend(url=url, transport=transport, deadline=600.0, models=(MODEL,))
    router = Router([backend])
    router.learn(backend, [MODEL])
    ledger = Ledger(
        database=made.database, blobs=made.blobs, clock=clock, worker_id="bench", lease=_LEASE, metrics=metrics
    )
    runner = Runner(
        ledger=ledger,
        database=made.database,
        blobs=made.blobs,
        room=Boundless(),
        lanes=Lanes(lanes=[Lane(backend=backend, pace=_Unpaced(window=in_flight))], router=router),
        feed=Feed(),
        sender=Sender(clock=clock, draw=random.random, once=False, unwell=Bell(clock=clock), metrics=metrics),
        lease=Lease(clock=clock, seconds=_LEASE),
        clock=clock,
        bell=Bell(clock=clock),
        bounds=bounds or GroupBounds(),
        metrics=metrics,
    )
    running = asyncio.create_task(runner.run())
    status = Status.IN_PROGRESS
    while status is Status.IN_PROGRESS and not running.done():
        await asyncio.sleep(0.05)
        rows = await made.database.read(lambda tx: batches_by_id(tx, batch_ids=[batch_id]))
        status = rows[batch_id].object.status
    runner.halt()
    await running
    await backend.close()


class _Unpaced(Pace):
    """Prompts are not paced here: the server is quicker than any, and what is looked for is what a line costs."""

    def sent(self, now: float, *, prefill: int = 0) -> bool:  # noqa: ARG002 - as Pace has it
        return super().sent(now)


async def _measure(name: str, url: str, folder: Path) -> dict[str, float]:
    lines, in_flight, synced = _CONTESTANTS[name]
    made = Made(folder, fsync=os.fsync if synced else _no_sync)
    if not synced and isinstance(made.database, SqliteDatabase):  # the product has no such switch
        event.listen(made.database._writer, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF"))  # noqa: SLF001
    if name == _REFERENCE:
        await _reference(url, in_flight, in_flight)  # opens the connections
        work = _reference(url, lines, in_flight)
    else:
        await made.prepare()
        work = drain(made, await made.batch(lines, BODY), url.removesuffix("/chat/completions"), in_flight)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    await work
    after, took = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    await made.database.close()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"us": cpu / lines * 1e6, "per_second": lines / took}


def _no_sync(_descriptor: int) -> None:
    """Trust the page cache."""


def _compare(rounds: int, folder: Path) -> Iterator[Figure]:
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in _CONTESTANTS}
    with stub(folder) as url:
        for _ in range(rounds):
            for name in _CONTESTANTS:
                command = [sys.executable, __file__, "--one", name, "--url", url]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                taken[name].append(json.loads(done.stdout))
    print(f"{'CPU-µs per line':20} {'median':>7} {'least':>7} {'most':>7} {'of bare':>8} {'per s':>8}")
    for name, figures in taken.items():
        costs = [figure["us"] for figure in figures]
        of_bare = [a["us"] / b["us"] for a, b in zip(figures, taken[_REFERENCE], strict=True)]
        wall = statistics.median(figure["per_second"] for figure in figures)
        print(
            f"{name:20} {statistics.median(costs):7.1f} {min(costs):7.1f} {max(costs):7.1f} "
            f"{statistics.median(of_bare):8.3f} {wall:8.0f}"
        )
    for name, figures in taken.items():
        print(json.dumps({"name": name, "figures": figures}))
    for ours, theirs, unit, goal in _FIGURES:
        yield Figure.of_pairs(
            [a[unit] / b[unit] for a, b in zip(taken[ours], taken[theirs], strict=True)],
            group="The durable path",
            name=f"{'CPU per line' if unit == 'us' else 'lines/s'}, {ours} / {theirs}",
            goal=goal,
            at_least=unit == "per_second",
        )


def main() -> None:
    """Compare all, or measure one in this process."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", choices=_CONTESTANTS, help="measure one of them in this process")
    parser.add_argument("--url")
    chosen = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
    with tempfile.TemporaryDirectory() as folder:
        if chosen.one is None:
            report(_compare(chosen.rounds, Path(folder)), chosen.json)
            return
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        spare_garbage_collection()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(runner.run(_measure(chosen.one, chosen.url, Path(folder)))))


if __name__ == "__main__":
    main()
