"""How long the API takes to answer while a large input is validated, beside an idle server, in the same run.

    python bench/serving.py --bytes 1000000000 --pairs 5

`batchmill serve --limits open`, with a backend that answers one line a second, has one large file and a hundred
batches. One client on a kept connection asks for a page of batches, and then for one batch, again and again: for some
seconds while nothing else happens, and then from the create of a batch on the large file until its validation is over.
The ratio is of the p99 of all answers of a pair. The batch is cancelled then, and the next pair begins when it has
ended. A create is not among what is asked: batches are validated one after the other, so that it would be many small
ones that are waited for.
"""

import argparse
import contextlib
import http.client
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from figure import Figure, arguments, report
from memory import write_input
from served import Server, serving

_SLOW = ("--backend", "echo:?latency_ms=1000#m", "--window", "1")
_IDLE_SECONDS = 5.0
_BATCHES = 100
_TINY = b"this is no request\n"
_PART = 0.99


@dataclass(slots=True)
class Client:
    """One client with one connection; `took` is what its answers took, in seconds."""

    server: Server
    connection: http.client.HTTPConnection
    took: list[float] = field(default_factory=list)

    def get(self, path: str) -> dict[str, Any]:
        """Ask once."""
        began = time.perf_counter()
        self.connection.request("GET", path, headers={"Authorization": f"Bearer {self.server.key}"})
        answer = self.connection.getresponse()
        data = answer.read()
        self.took.append(time.perf_counter() - began)
        if answer.status != http.client.OK:
            raise RuntimeError(f"{path}: {answer.status} {data.decode()}")
        said: dict[str, Any] = json.loads(data)
        return said

    def ask(self, batch_id: str, *, seconds: float = inf) -> float:
        """Ask for so long, or for as long as the batch is validated; return the p99."""
        self.took.clear()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.get("/v1/batches")
            if self.get(f"/v1/batches/{batch_id}")["status"] != "validating" and seconds == inf:
                break
        took = sorted(self.took)
        return took[int(_PART * len(took))]


def pairs(size: int, count: int, folder: Path) -> Iterator[tuple[float, float]]:
    """Yield the p99 during a validation and that of the idle server, in seconds."""
    large, tiny = folder / "in.jsonl", folder / "tiny.jsonl"
    write_input(large, size, line_bytes=1_000)
    tiny.write_bytes(_TINY)
    with serving(folder / "data", "--limits", "open", *_SLOW) as server:
        large_id, tiny_id = server.upload(large), server.upload(tiny)
        small_ids = [server.create(tiny_id) for _ in range(_BATCHES)]
        for small_id in small_ids:
            server.until(small_id, ("failed",))
        time.sleep(_IDLE_SECONDS)
        for _ in range(count):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
                client = Client(server, connection)
                idle, idly = client.ask(small_ids[0], seconds=_IDLE_SECONDS), len(client.took)
                batch_id, began = server.create(large_id), time.monotonic()
                busy, took = client.ask(batch_id), time.monotonic() - began
            print(
                f"p99 {idle * 1000:.1f} ms of {idly} answers idle, {busy * 1000:.1f} ms of {len(client.took)} "
                f"while {size / 1e6:.0f} MB were validated in {took:.1f} s",
                flush=True,
            )
            yield busy, idle
            server.ask("POST", f"/v1/batches/{batch_id}/cancel")
            server.until(batch_id, ("cancelled",))


def figures(chosen: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Measure."""
    found = list(pairs(chosen.bytes, chosen.pairs, folder))
    idle, busy = (1000 * min(side) for side in zip(*((idle, busy) for busy, idle in found), strict=True))
    name, note = "API p99 during a validation / idle", f"at best {busy:.1f} and {idle:.1f} ms"
    yield Figure.of_pairs([busy / idle for busy, idle in found], group="serving", name=name, goal=3, note=note)


def main() -> None:
    """Serve, and ask."""
    options = arguments(__doc__)
    options.add_argument("--bytes", type=int, default=1_000_000_000)
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("--folder", type=Path, help="on a disk with three times that; default: the temporary folder")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        report(figures(chosen, Path(folder)), chosen.json)


if __name__ == "__main__":
    main()
