"""What an upload takes beside a bare receiver of the same bytes, and closing a batch beside `cp` of its result file.

    python bench/transfer.py --bytes 500000000 --lines 300000 --pairs 5

Upload: the kernel sends the same form, over loopback, to `batchmill serve` and to a process that writes whatever comes
from its socket into a file, calls fdatasync and answers; the ratio is of the rates, to the answer. Closing: a batch all
of whose answers came in the file's order, until its Finalizer has sealed it; `cp` is followed by an fsync. Each pair
takes turns after a `sync`. CPU is that of the receiving process (of the API), and of the process that closes or copies.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from answered import LEASE, answer
from figure import Figure, arguments, report
from made import Made
from memory import write_input
from served import Server, serving, upload

from batchmill.blobs.space import Boundless
from batchmill.engine.finalizer import Finalizer
from batchmill.spec.states import Status
from batchmill.store.batch import batches_by_id

_UPLOAD = "upload: MB/s / bare socket to file and fdatasync"
_CLOSING = "closing, answers in the file's order / cp and fsync"
_TICKS = os.sysconf("SC_CLK_TCK")
_PIECE = 1 << 20
_LOOK_SECONDS = 0.1  # until the bytes of a deleted file are gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a turn took, in seconds."""

    wall: float
    cpu: float


def _of_process(pid: int, call: Callable[[], object]) -> Cost:
    """Time a call, and what it makes another process use; the machine has nothing left to write when it begins."""
    os.sync()
    before, began = _cpu(pid), time.perf_counter()
    call()
    return Cost(wall=time.perf_counter() - began, cpu=_cpu(pid) - before)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def uploads(size: int, pairs: int, folder: Path) -> Iterator[tuple[Cost, Cost]]:
    """Yield what an upload cost the API, and the bare receiver."""
    source = folder / "in.jsonl"
    write_input(source, size, line_bytes=1_000)
    with serving(folder / "data", "--limits", "open", "--backend", "echo:") as server, _receiver(folder) as (pid, port):
        api = server.pid("api")
        if api is None:
            raise RuntimeError("there is no API")
        for pair in range(1 + pairs):
            theirs = _of_process(pid, lambda: _send(port, source))
            ours = _of_process(api, lambda: _send(server.port, source, server))
            for file in server.ask("GET", "/v1/files")["data"]:
                server.ask("DELETE", f"/v1/files/{file['id']}")
            while any(path.stat().st_size for path in (folder / "data" / "blobs").glob("*/*")):
                time.sleep(_LOOK_SECONDS)
            if pair:  # the first is for both to find their memory
                yield ours, theirs


def _send(port: int, source: Path, server: Server | None = None) -> None:
    with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as connection:
        answer = upload(connection, source, key=server.key if server else "")
    if b" 200 " not in answer.partition(b"\r\n")[0]:
        raise RuntimeError(f"not taken: {answer.decode()}")


@contextlib.contextmanager
def _receiver(folder: Path) -> Iterator[tuple[int, int]]:
    """Run the bare receiver; gives its pid and port."""
    command = [sys.executable, __file__, "--receive-into", str(folder / "received")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.pid, int(process.stdout.readline() if process.stdout else 0)
    finally:
        process.kill()
        process.wait()


def _receive(path: Path) -> None:
    """Be the bare receiver."""
    buffer = memoryview(bytearray(_PIECE))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            with connection, path.open("wb", buffering=0) as stream:
                head, _, rest = connection.recv(_PIECE).partition(b"\r\n\r\n")
                left = int(head.lower().partition(b"content-length:")[2].split()[0]) - len(rest)
                stream.write(rest)
                while left > 0 and (count := connection.recv_into(buffer)):
                    stream.write(buffer[:count])
                    left -= count
                os.fdatasync(stream.fileno())
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            path.unlink()


async def closing(lines: int, folder: Path) -> tuple[Cost, Cost]:
    """Return what closing a batch cost, and copying its result file."""
    made = Made(folder)
    await made.prepare()
    batch_id = await made.batch(lines)
    await answer(made, lines=lines)
    mine = {"database": made.database, "blobs": made.blobs, "clock": made.clock, "room": Boundless()}
    finalizer = Finalizer(worker_id="bench", lease=LEASE, **mine)
    os.sync()
    before, began = _rusage(resource.RUSAGE_SELF), time.perf_counter()
    await finalizer.step()
    ours = Cost(wall=time.perf_counter() - began, cpu=_rusage(resource.RUSAGE_SELF) - before)
    batch = (await made.database.read(lambda tx: batches_by_id(tx, batch_ids=[batch_id])))[batch_id]
    if batch.object.status is not Status.COMPLETED:
        raise RuntimeError(f"not closed: {batch.object.status}, {batch.waiting}")
    await made.database.close()
    (output,) = (folder / "blobs").rglob(f"{batch_id}-*-output")
    return ours, _copied(output, folder / "copy")


def closings(lines: int, pairs: int, folder: Path) -> Iterator[tuple[Cost, Cost]]:
    """Close a fresh batch each time."""
    for _ in range(pairs):
        with tempfile.TemporaryDirectory(dir=folder) as data:
            yield asyncio.run(closing(lines, Path(data)))


def _copied(source: Path, target: Path) -> Cost:
    os.sync()
    before, began = _rusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(["/bin/cp", str(source), str(target)], check=True)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())
    return Cost(wall=time.perf_counter() - began, cpu=_rusage(resource.RUSAGE_CHILDREN) - before)


def _rusage(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def figures(chosen: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Measure both."""
    costs = list(uploads(chosen.bytes, chosen.pairs, folder))
    rates = [round(chosen.bytes / min(cost.wall for cost in side) / 1e6) for side in zip(*costs, strict=True)]
    note = f"at best {rates[0]} and {rates[1]} MB/s"
    ratios = [theirs.wall / ours.wall for ours, theirs in costs]
    yield Figure.of_pairs(ratios, group="transfer", name=_UPLOAD, goal=0.6, at_least=True, note=note)
    yield Figure.of_pairs([a.cpu / b.cpu for a, b in costs], group="transfer", name="upload: CPU / of the same")
    costs = list(closings(chosen.lines, chosen.pairs, folder))
    best = [min(cost.wall for cost in side) for side in zip(*costs, strict=True)]
    note = f"at best {best[0]:.2f} and {best[1]:.2f} s"
    ratios = [ours.wall / theirs.wall for ours, theirs in costs]
    yield Figure.of_pairs(ratios, group="transfer", name=_CLOSING, goal=3, note=note)
    yield Figure.of_pairs([a.cpu / b.cpu for a, b in costs], group="transfer", name="closing: CPU / of the same")


def main() -> None:
    """Measure both, or be the bare receiver."""
    options = arguments(__doc__)
    options.add_argument("--bytes", type=int, default=500_000_000)
    options.add_argument("--lines", type=int, default=300_000)
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("--folder", type=Path, help="where the disk to be measured is; default: the temporary folder")
    options.add_argument("--receive-into", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.receive_into is not None:
        _receive(chosen.receive_into)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        report(figures(chosen, Path(folder)), chosen.json)


if __name__ == "__main__":
    main()
