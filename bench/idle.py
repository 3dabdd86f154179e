"""What waiting costs: CPU of a server whose open batches wait for a dead backend, and the list among many batches.

    python bench/idle.py --open 1000 --stored 100000 --seconds 60

A data directory is made with so many batches in progress, and final ones beside them; `batchmill serve` runs on it with
a backend that nobody listens for. CPU is that of all its processes over the time, once it has settled. Then
`GET /v1/batches` is asked page after page, with a key of the organisation that has them all.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from figure import Figure, arguments, report

from batchmill.clock import SystemClock
from batchmill.spec.ids import key_digest, mint_id, mint_key
from batchmill.spec.objects import BatchObject
from batchmill.spec.states import Event, Status
from batchmill.store.batch import Batch, advance, insert_batch
from batchmill.store.blob import insert_ready
from batchmill.store.database import SqliteDatabase, Transaction
from batchmill.store.migrate import migrate
from batchmill.store.organisation import insert_key, insert_organisation
from batchmill.store.slice import Slice, insert_slices

_AT_ONCE = 500  # rows a transaction
_TICKS = os.sysconf("SC_CLK_TCK")
_DEAD = "http://127.0.0.1:9/v1"
_PAGES = 300
_GROUP = "Waiting"
_SETTLED = 15.0  # seconds after which a server has nothing left to do but wait


async def _fill(data: Path, *, waiting: int, stored: int) -> str:
    """Make the rows; return the key of their organisation."""
    clock = SystemClock()
    database = SqliteDatabase(path=data / "batchmill.sqlite3", clock=clock)
    organisation, key = mint_id("org", clock.now()), mint_key()
    await database.write(migrate)

    def owner(tx: Transaction) -> None:
        insert_organisation(tx, organisation_id=organisation, name="bench", now=1)
        insert_key(tx, key_id=mint_id("key", clock.now()), organisation_id=organisation, digest=key_digest(key), now=1)
        for blob in ("input", "plan"):
            insert_ready(tx, key=blob, organisation_id=organisation, size=1, refs=waiting + stored, now=1)

    await database.write(owner)
    for start in range(0, waiting + stored, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, waiting + stored))
        await database.write(
            partial(_insert_all, organisation=organisation, now=clock.now(), numbers=numbers, waiting=waiting)
        )
    await database.close()
    return key


def _insert_all(tx: Transaction, *, organisation: str, now: float, numbers: range, waiting: int) -> None:
    for number in numbers:
        _insert(tx, organisation, now=now, open_=number < waiting)


def _insert(tx: Transaction, organisation: str, *, now: float, open_: bool) -> None:
    batch_id, at = mint_id("batch", now), int(now)
    facts = BatchObject(
        id=batch_id,
        endpoint="/v1/chat/completions",
        input_file_id="file_bench",
        completion_window="24h",
        status=Status.VALIDATING,
        created_at=at,
        expires_at=at + 86_400,
    )
    insert_batch(
        tx,
        Batch(
            organisation_id=organisation,
            object=facts,
            input_key="input" if open_ else None,
            plan_key=None,
            output_expires_after=None,
            epoch=0,
        ),
    )
    if not open_:
        advance(tx, batch_id=batch_id, status=Status.VALIDATING, event=Event.REJECTED, now=at, values={})
        return
    values = {"total": 1, "open_slices": 1, "plan_key": "plan"}
    advance(tx, batch_id=batch_id, status=Status.VALIDATING, event=Event.ACCEPTED, now=at, values=values)
    one = Slice(
        batch_id=batch_id,
        organisation_id=organisation,
        ordinal=0,
        model="m",
        first=0,
        lines=1,
        bytes=1,
        done=b"\0",
        epoch=0,
    )
    insert_slices(tx, [one])


def _cpu(parent: int) -> dict[str, float]:
    """Return the CPU seconds that a process and its children have used, by their role."""
    used: dict[str, float] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = status.parent.name, status.read_text(encoding="ascii").rpartition(") ")[2].split()
            if int(pid) == parent or int(rest[1]) == parent:
                name = "supervisor" if int(pid) == parent else f"child {len(used)}"
                used[name] = (int(rest[11]) + int(rest[12])) / _TICKS
        except FileNotFoundError:
            continue  # it ended while we looked
    return used


def _pages(url: str, key: str) -> list[float]:
    """Return how long each page of the list took, in milliseconds."""
    took, after = [], ""
    for _ in range(_PAGES):
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{url}/v1/batches?limit=100{after}", headers={"Authorization": f"Bearer {key}"}
        )
        began = time.perf_counter()
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - the same
            page = json.load(answer)
        took.append((time.perf_counter() - began) * 1000)
        after = f"&after={page['data'][-1]['id']}" if page["has_more"] else ""
    return took


def main() -> None:
    """Fill a data directory, serve it, and measure."""
    options = arguments(__doc__)
    options.add_argument("--open", type=int, default=1_000)
    options.add_argument("--stored", type=int, default=100_000)
    options.add_argument("--seconds", type=float, default=60.0)
    chosen = options.parse_args()
    report(_figures(waiting=chosen.open, stored=chosen.stored, seconds=chosen.seconds), chosen.json)


def _figures(*, waiting: int, stored: int, seconds: float) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        key = asyncio.run(_fill(data, waiting=waiting, stored=stored))
        command = [Path(sys.executable).with_name("batchmill"), "serve", "--data", data, "--port", "0"]
        options = [str(each) for each in (*command, "--backend", _DEAD)]
        server = subprocess.Popen(options, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            url = server.stdout.readline().split()[-1] if server.stdout else ""  # "Batchmill listens on …"
            time.sleep(_SETTLED)
            before = _cpu(server.pid)
            time.sleep(seconds)
            after = _cpu(server.pid)
            took = sorted(_pages(url, key))
        finally:
            server.terminate()
            server.wait()
    shares = {name: (after[name] - before[name]) / seconds * 100 for name in before}
    print(", ".join(f"{name} {share:.2f} %" for name, share in shares.items()))
    yield Figure(
        group=_GROUP,
        name=f"CPU of a core, {waiting:,} open batches wait for a dead backend",
        value=sum(shares.values()),
        unit="%",
        goal=1.0,
    )
    yield Figure(
        group=_GROUP,
        name=f"GET /v1/batches, {stored:,} stored, p99 of {_PAGES} pages of 100",
        value=took[int(len(took) * 0.99)],
        unit="ms",
        goal=50.0,
        note="Wall time of one client that asks page after page.",
    )


if __name__ == "__main__":
    main()
