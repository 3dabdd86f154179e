"""What goes past one machine costs: PostgreSQL and a bucket beside SQLite and a disk, two workers beside one.

    python bench/scale.py

PostgreSQL waits for its disk, the bucket is a SeaweedFS; both run on the same cores as what is measured, so wall times
are a lower bound of what machines of their own give. CPU is that of our process alone.
"""

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import asyncpg
import uvloop
from dispatch import stub
from durable import BODY, drain
from figure import Figure, arguments, report
from ground import Ground, ground
from made import MODEL, Made
from served import ENDPOINT, Server, said

from batchmill.assemble.worker import BUCKET_BOUNDS
from batchmill.blobs.bucket import BucketBlobs
from batchmill.cli.process import spare_garbage_collection
from batchmill.ledger.ledger import Claim, Ledger, Portion
from batchmill.ledger.segment import Result
from batchmill.spec.results import answered, result_id
from batchmill.store.postgres import PostgresDatabase
from batchmill.telemetry import Metrics

_GROUP = "Past one machine"
_IN_FLIGHT = 256
_PATH_LINES = 60_000
_ECHO_MS, _WINDOW = 50, 64
_TWO_LINES = 40_000
_COMMITTERS = 8
_COMMIT_SECONDS = 10.0
_CALLERS = 16
_CALL_SECONDS = 10.0
_UPLOAD_BYTES = 90_000_000
_LEASE = 3600.0
_MIDDLE = (0.2, 0.9)  # of a batch: prompts are paced at first, and at last a worker may have nothing more
_REPLY = b'{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"It depends."}}]}'


# ── What a line costs a worker ──────────────────────────────────────────────────────────────────────────────────────


async def _one(url: str, folder: Path, database: str | None, blobs: str | None) -> float:
    """Return the CPU-µs of a line on its durable path, of this process."""
    if database is None or blobs is None:
        made = Made(folder)
    else:
        made = Made(
            folder,
            database=PostgresDatabase(url=database, role="bench"),
            blobs=BucketBlobs(url=blobs, scratch=folder / "scratch"),
        )
    await made.prepare()
    batch_id = await made.batch(_PATH_LINES, BODY)
    before = resource.getrusage(resource.RUSAGE_SELF)
    await drain(made, batch_id, url, _IN_FLIGHT, None if database is None else BUCKET_BOUNDS)
    after = resource.getrusage(resource.RUSAGE_SELF)
    await made.database.close()
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / _PATH_LINES * 1e6


def _cost(there: Ground, rounds: int) -> Figure:
    ratios = []
    with tempfile.TemporaryDirectory() as folder, stub(Path(folder)) as chat:
        url = chat.removesuffix("/chat/completions")
        for number in range(rounds):
            costs = []
            for options in ([], ["--database", asyncio.run(_fresh(there)), "--blobs", f"{there.blobs}/{number}"]):
                command = [sys.executable, __file__, "--one", url, *options]
                costs.append(float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
            print(f"CPU-µs per line: SQLite and disk {costs[0]:.1f}, PostgreSQL and S3 {costs[1]:.1f}", flush=True)
            ratios.append(costs[1] / costs[0])
    name = f"CPU per line @{_IN_FLIGHT}, PostgreSQL and S3 / SQLite and disk"
    return Figure.of_pairs(ratios, group=_GROUP, name=name, goal=1.5)


async def _fresh(there: Ground) -> str:
    return await there.cluster.new_database(migrated=False)


# ── Workers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _running(database: str, blobs: str, *workers: Sequence[str]) -> Iterator[Server]:
    """Run an API process and workers with these options; yield the API."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("BATCHMILL_")}
    env |= {
        "BATCHMILL_DATABASE": database,
        "BATCHMILL_BLOBS": blobs,
        "BATCHMILL_LIMITS": "open",
        "BATCHMILL_LIMITS_OVERRIDE": '{"max_files": 1000000}',
    }
    batchmill = [sys.executable, "-m", "batchmill"]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        made = subprocess.run(
            [*batchmill, "keys", "create", "--data", folder], check=True, env=env, stdout=subprocess.PIPE
        )

        def start(command: str, *options: str, pattern: str) -> tuple["subprocess.Popen[str]", str]:
            process = subprocess.Popen(
                [*batchmill, command, "--data", folder, *options],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            running.callback(_end, process)
            return process, said(process, pattern)

        api, port = start("serve", "--no-worker", "--port", "0", pattern=r"listens on http://127\.0\.0\.1:(\d+)")
        for options in workers:
            start("worker", "--metrics-port", "0", *options, pattern=r"(Metrics) on")
        yield Server(process=api, port=int(port), key=made.stdout.decode().strip())


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.wait(timeout=60)
    if process.stdout is not None:
        process.stdout.close()


def _input(folder: Path, lines: int) -> Path:
    path = folder / f"{lines}.jsonl"
    body = {"model": "echo", "messages": [{"role": "user", "content": "x" * 200}]}
    text = json.dumps({"method": "POST", "url": ENDPOINT, "body": body})
    with path.open("w", encoding="ascii") as stream:
        for number in range(lines):
            stream.write(f'{{"custom_id":"request-{number}",{text[1:]}\n')
    return path


def _rate(there: Ground, folder: Path, workers: int) -> float:
    """Return the lines a second of so many workers, from the first line that is counted to the last."""
    echo = ("--backend", f"echo:?latency_ms={_ECHO_MS}", "--window", str(_WINDOW * workers))
    with _running(asyncio.run(_fresh(there)), f"{there.blobs}/w{workers}", *[echo] * workers) as api:
        batch_id = api.create(api.upload(_input(folder, _TWO_LINES * workers)))
        moments: list[tuple[float, int]] = []
        done = 0
        while done < _TWO_LINES * workers:
            now = int(api.ask("GET", f"/v1/batches/{batch_id}")["request_counts"]["completed"])
            if now > done:
                moments.append((time.monotonic(), now))
            done = now
            time.sleep(0.02)
        api.until(batch_id)
    middle = [each for each in moments if _MIDDLE[0] <= each[1] / done <= _MIDDLE[1]]
    (begin, first), (end, last) = middle[0], middle[-1]
    return (last - first) / (end - begin)


def _two(there: Ground, folder: Path, rounds: int) -> Figure:
    ratios = []
    for _ in range(rounds):
        one, two = (_rate(there, folder, workers) for workers in (1, 2))
        print(f"lines/s: one worker {one:.0f}, two workers {two:.0f}", flush=True)
        ratios.append(two / one)
    name = f"lines/s, two workers / one, {_ECHO_MS} ms, a window of {_WINDOW} each"
    return Figure.of_pairs(ratios, group=_GROUP, name=name, goal=1.8, at_least=True)


# ── A million lines ─────────────────────────────────────────────────────────────────────────────────────────────────


def _million(there: Ground, folder: Path, lines: int) -> Iterator[Figure]:
    database = asyncio.run(_fresh(there))
    echo = ("--backend", "echo:", "--window", "512")
    with _running(database, f"{there.blobs}/m", echo, echo) as api:
        before = asyncio.run(_look(database))
        most, ended = 0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not ended.wait(0.2):
                most = max(most, int(asyncio.run(_look(database))["connections"]))

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        began = time.monotonic()
        file_id = api.upload(_input(folder, lines))
        uploaded = time.monotonic()
        batch_id = api.create(file_id)
        batch = api.until(batch_id, every=0.25)
        took = time.monotonic() - uploaded
        ended.set()
        watching.join()
        after = asyncio.run(_look(database))
        if batch["request_counts"]["completed"] != lines:
            raise RuntimeError(f"not all lines are completed: {batch['request_counts']}")
        amounts = {
            "size of the database after finalize": ((after["bytes"]) / 2**20, "MiB"),
            "growth of the database by the batch": ((after["bytes"] - before["bytes"]) / 2**20, "MiB"),
            "most connections, an API process and two workers": (most, ""),
            "transactions, reads and the looks of this bench included": (after["commits"] - before["commits"], ""),
            "rows of the batch before they are cleared": (asyncio.run(_rows(database)), ""),
            "upload": (uploaded - began, "s"),
            "from create to completed": (took, "s"),
        }
        for name, (value, unit) in amounts.items():
            yield Figure(group=_GROUP, name=f"{lines:,} lines: {name}", value=float(value), unit=unit or "count")


async def _look(database: str) -> dict[str, int]:
    connection = await asyncpg.connect(database, server_settings={"application_name": "looks on"})
    try:
        row = await connection.fetchrow(
            "SELECT pg_database_size(datname) AS bytes, xact_commit AS commits, (SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = d.datname AND application_name <> 'looks on') AS connections"
            " FROM pg_stat_database d WHERE datname = current_database()"
        )
    finally:
        await connection.close()
    return dict(row)


async def _rows(database: str) -> int:
    connection = await asyncpg.connect(database)
    try:
        return int(await connection.fetchval("SELECT (SELECT count(*) FROM slice) + (SELECT count(*) FROM segment)"))
    finally:
        await connection.close()


# ── Where each part ends ────────────────────────────────────────────────────────────────────────────────────────────


async def _commits(there: Ground, folder: Path, *, bucket: bool) -> float:
    """Return the group commits a second of eight owners, each of whole Slices of 256 lines."""
    database = PostgresDatabase(url=await _fresh(there), role="bench", pool_size=_COMMITTERS)
    blobs = BucketBlobs(url=f"{there.blobs}/c", scratch=folder / "scratch") if bucket else None
    made = Made(folder / f"commits-{bucket}", database=database, blobs=blobs)
    await made.prepare()
    for _ in range(_COMMITTERS):
        await made.batch(100_000)
    until, commits = time.monotonic() + _COMMIT_SECONDS, 0

    async def owner(name: str) -> None:
        nonlocal commits
        ledger = Ledger(
            database=database, blobs=made.blobs, clock=made.clock, worker_id=name, lease=_LEASE, metrics=Metrics()
        )
        while time.monotonic() < until:
            claims = await ledger.claim(slices=1, models=[MODEL])
            if not claims:
                return
            await ledger.commit([_portion(claim) for claim in claims])
            commits += 1

    began = time.monotonic()
    await asyncio.gather(*(owner(f"w{number}") for number in range(_COMMITTERS)))
    took = time.monotonic() - began
    await database.close()
    return commits / took


def _portion(claim: Claim) -> Portion:
    """Return the results of a whole Slice."""
    batch_id, lines = claim.batch.object.id, claim.slice.lines
    results = [
        Result(
            index=index,
            succeeded=True,
            attempts=1,
            text=answered(
                result_id(batch_id, record.line), b'"request-%d"' % (record.line - 1), 200, "req_0123456789", _REPLY
            ),
        )
        for index, record in enumerate(claim.records)
    ]
    done = ((1 << lines) - 1).to_bytes((lines + 7) // 8, "little")
    return Portion(slice=claim.slice, results=results, done=done, closed=True)


def _calls(call: Callable[[], object]) -> float:
    """Return the calls a second of some callers, each of whom waits for its answer."""
    until, counts = time.monotonic() + _CALL_SECONDS, [0] * _CALLERS

    def caller(number: int) -> None:
        while time.monotonic() < until:
            call()
            counts[number] += 1

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(_CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / _CALL_SECONDS


def _ends(there: Ground, folder: Path) -> Iterator[Figure]:
    for bucket in (False, True):
        where = "to the bucket" if bucket else "to a disk"
        rate = asyncio.run(_commits(there, folder, bucket=bucket))
        yield Figure(
            group=_GROUP, name=f"claims and group commits, {_COMMITTERS} owners, {where}", value=rate, unit="/s"
        )
    with _running(asyncio.run(_fresh(there)), f"{there.blobs}/e") as api:
        small = _input(folder, 10)
        file_id = api.upload(small)
        reads = _calls(lambda: api.ask("GET", f"/v1/files/{file_id}"))
        uploads = _calls(lambda: api.upload(small))
        large = folder / "large.jsonl"
        with large.open("wb") as stream:
            line = small.read_bytes().split(b"\n", 1)[0] + b"\n"
            for _ in range(_UPLOAD_BYTES // len(line)):
                stream.write(line)
        began = time.monotonic()
        large_id = api.upload(large)
        up = time.monotonic() - began
        began = time.monotonic()
        size = api.download(large_id)
        down = time.monotonic() - began
        creates = _calls(lambda: api.create(file_id))
        for name, value, unit in (
            ("one API process: looks at a File", reads, "/s"),
            ("one API process: small uploads", uploads, "/s"),
            ("one API process: creates", creates, "/s"),
            ("one API process: a large upload", size / up / 1e6, "MB/s"),
            ("one API process: a large download", size / down / 1e6, "MB/s"),
        ):
            yield Figure(group=_GROUP, name=name, value=value, unit=unit)


def _all(rounds: int, lines: int, only: Sequence[str]) -> Iterator[Figure]:
    with ground() as there, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "cost" in only:
            yield _cost(there, rounds)
        if "two" in only:
            yield _two(there, folder, min(rounds, 3))
        if "million" in only:
            yield from _million(there, folder, lines)
        if "ends" in only:
            yield from _ends(there, folder)


def main() -> None:
    """Measure all, or one path in this process."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="+", default=["cost", "two", "million", "ends"])
    parser.add_argument("--one", metavar="URL", help="measure one durable path in this process")
    parser.add_argument("--database")
    parser.add_argument("--blobs")
    chosen = parser.parse_args()
    if chosen.one is None:
        report(_all(chosen.rounds, chosen.lines, chosen.only), chosen.json)
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    spare_garbage_collection()
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(_one(chosen.one, Path(folder), chosen.database, chosen.blobs)))


if __name__ == "__main__":
    main()
