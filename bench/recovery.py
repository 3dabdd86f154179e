"""How soon a killed worker's successor sends again, with a large batch half done.

    python bench/recovery.py --lines 1000000 --rounds 5

The batch is made half answered: its rows, its bitmaps and one immutable blob for each group commit. `batchmill serve`
goes on with it, against a backend in this process that takes 50 ms for each line. Again and again its worker is killed
with SIGKILL while lines are in flight. Counted is from the start of the next worker process (as the kernel has it, to
10 ms) to the first request on a connection opened since. Its imports are done when it starts its first thread, the very
next thing that it does. What goes before, the supervisor's look at the dead child and its wait, is printed as well.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from answered import answer
from figure import Figure, arguments, report
from made import MODEL, Made
from served import Server, serving

from batchmill.clock import SystemClock
from batchmill.spec.ids import key_digest, mint_id, mint_key
from batchmill.store.database import SqliteDatabase
from batchmill.store.organisation import insert_key

T = TypeVar("T")

_BODY = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % (b"x" * 400)
_REPLY = b'{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"%b"}}]}' % (
    b"y" * 500
)
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_REPLY), _REPLY)
_LATENCY = 0.05
_SETTLED = 6.0  # seconds that a worker lives before it is killed: one that dies sooner is started more slowly
_PATIENCE = 60.0
_LOOK = 0.0005
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(eq=False, slots=True)
class Backend(asyncio.Protocol):
    """One connection to the backend; `sent` keeps when each was opened and had its first request (boot clock)."""

    sent: list[tuple[float, float]]
    opened: float = 0.0
    asked: bool = False
    transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note when."""
        self.opened = _boot()
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Note the first request for a line; answer each after a while. A small request comes in one piece."""
        if not self.asked and data.startswith(b"POST"):
            self.asked = True
            self.sent.append((self.opened, _boot()))
        asyncio.get_running_loop().call_later(_LATENCY, self._answer)

    def _answer(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(_ANSWER)


@dataclass(slots=True)
class Listening:
    """The backend, in a thread of its own."""

    sent: list[tuple[float, float]] = field(default_factory=list)
    port: int = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Listen."""
        loop, ready = asyncio.new_event_loop(), threading.Event()

        async def listen() -> None:
            server = await loop.create_server(lambda: Backend(self.sent), "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        def run() -> None:
            loop.run_until_complete(listen())
            loop.run_forever()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        ready.wait()
        yield
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Seconds: from the kill to the next process, from there to its imports' end, from there to its first send."""

    started: float
    imported: float
    sent: float


async def half_done(data: Path, lines: int) -> tuple[str, str]:
    """Make a batch, half of it answered; return its id and a key that may see it."""
    made = Made(data, database=SqliteDatabase(path=data / "batchmill.sqlite3", clock=SystemClock()))
    await made.prepare()
    key = mint_key()
    row = {"organisation_id": made.organisation, "digest": key_digest(key), "now": 1}
    await made.database.write(lambda tx: insert_key(tx, key_id=mint_id("key", made.clock.now()), **row))
    batch_id = await made.batch(lines, _BODY)
    await answer(made, lines=lines // 2)
    await made.database.close()
    return batch_id, key


def kill(server: Server, backend: Listening) -> Recovered:
    """Kill the worker while it works, and see what the next one does."""
    before = server.pid("worker")
    if before is None:
        raise RuntimeError("there is no worker")
    killed = _boot()
    os.kill(before, signal.SIGKILL)
    pid = _until(lambda: _other(server.pid("worker"), before))
    started = _started(pid)
    _until(lambda: _threads(pid) > 1)
    imported = _boot()
    sent = _until(lambda: min((first for opened, first in backend.sent if opened > killed), default=None))
    return Recovered(started=started - killed, imported=imported - started, sent=sent - imported)


def _other(pid: int | None, than: int) -> int | None:
    return None if pid == than else pid


def _until(look: Callable[[], T | None]) -> T:
    end = time.monotonic() + _PATIENCE
    while not (found := look()):
        if time.monotonic() > end:
            raise RuntimeError(f"not within {_PATIENCE} s")
        time.sleep(_LOOK)
    return found


def _boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _started(pid: int) -> float:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()[19]) / _TICKS


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208 - two thousand times a second


def recoveries(lines: int, rounds: int, where: Path | None) -> Iterator[Recovered]:
    """Make the batch, and kill its worker so many times."""
    backend = Listening()
    with tempfile.TemporaryDirectory(dir=where) as folder, backend.running():
        data = Path(folder) / "data"
        data.mkdir()
        batch_id, key = asyncio.run(half_done(data, lines))
        url = f"http://127.0.0.1:{backend.port}/v1#{MODEL}"
        with serving(data, "--backend", url, key=key) as server:
            for _ in range(rounds):
                time.sleep(_SETTLED)
                counts = server.ask("GET", f"/v1/batches/{batch_id}")["request_counts"]
                recovered = kill(server, backend)
                print(
                    f"{counts['completed']} of {counts['total']} done: killed, {recovered.started:.3f} s, started, "
                    f"{recovered.imported:.3f} s, imports done, {recovered.sent:.3f} s, first send",
                    flush=True,
                )
                yield recovered


def figures(chosen: argparse.Namespace) -> Iterator[Figure]:
    """Measure."""
    found = list(recoveries(chosen.lines, chosen.rounds, chosen.folder))
    imports = statistics.median(each.imported for each in found)
    note = f"the imports before take {imports:.2f} s"
    name = "a killed worker's successor: imports done to first send"
    yield Figure.of_pairs([each.sent for each in found], group="recovery", name=name, unit="s", goal=1, note=note)
    whole = [each.imported + each.sent for each in found]
    yield Figure.of_pairs(whole, group="recovery", name="the same from the start of its process", unit="s")


def main() -> None:
    """Make half a batch and kill its worker."""
    options = arguments(__doc__)
    options.add_argument("--lines", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", type=Path, help="for the data directory; default: the temporary folder")
    report(figures(options.parse_args()), options.parse_args().json)


if __name__ == "__main__":
    main()
