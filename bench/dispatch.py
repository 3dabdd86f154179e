"""What one request costs: CPU of the client process per request, for each Transport and for a bare aiohttp loop.

    python bench/dispatch.py

Requests of 1 KB, replies of 700 bytes, from a compiled server on a core of its own. Every figure is taken in a fresh
process after a warm-up that opens all connections; the contestants take turns, round after round, so that a noisy
neighbour meets all of them. Wall time is printed and says little: CPU time is what counts.
"""

import asyncio
import contextlib
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import uvloop
from figure import Figure, arguments, report

from batchmill.backends.aiohttp_transport import AiohttpTransport
from batchmill.backends.transport import Transport
from batchmill.backends.wire import WireTransport
from batchmill.clock import SystemClock

_BODY = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % (b"x" * 970)
_REPLY_BYTES = 700
_MAX_REPLY_BYTES = 1 << 24
_GROUP = "Dispatch: the Transport alone"
_REFERENCE = "bare aiohttp @256"
# name: what sends, requests in flight, requests measured
_CONTESTANTS = {
    _REFERENCE: ("bare", 256, 20_000),
    "AiohttpTransport @256": ("aiohttp", 256, 20_000),
    "WireTransport @64": ("own", 64, 60_000),
    "WireTransport @256": ("own", 256, 60_000),
    "WireTransport @4096": ("own", 4096, 60_000),
}
_HEADERS = {"Content-Type": "application/json", "Idempotency-Key": "batch_req_1", "X-Request-Id": "req_1_1a1"}

Send = Callable[[], Awaitable[int | None]]


@contextlib.asynccontextmanager
async def bare(url: str) -> AsyncIterator[Send]:
    """The cheapest loop that aiohttp allows: raw bytes out and in, no tracing, no deadline of its own."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def send() -> int:
            async with session.post(url, data=_BODY, headers=_HEADERS) as response:
                await response.read()
                return response.status

        yield send


@contextlib.asynccontextmanager
async def _through(transport: Transport, url: str) -> AsyncIterator[Send]:
    async def send() -> int | None:
        reply = await transport.request(method="POST", url=url, headers=_HEADERS, body=_BODY, deadline=1800.0)
        return reply.status

    yield send
    await transport.close()


def _sender(kind: str, url: str) -> contextlib.AbstractAsyncContextManager[Send]:
    if kind == "bare":
        return bare(url)
    transport = WireTransport if kind == "own" else AiohttpTransport
    return _through(transport(clock=SystemClock(), max_reply_bytes=_MAX_REPLY_BYTES), url)


async def _measure(kind: str, url: str, in_flight: int, requests: int) -> dict[str, float]:
    async with _sender(kind, url) as send:

        async def repeat(count: int) -> None:
            for _ in range(count):
                if await send() != 200:  # noqa: PLR2004 - what the stub says
                    raise RuntimeError("the stub did not answer")

        async def run(count: int) -> None:
            await asyncio.gather(*(repeat(count) for _ in range(in_flight)))

        await run(3)
        gc.collect()
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        each = max(1, requests // in_flight)
        await run(each)
        after, took = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"us": cpu / (each * in_flight) * 1e6, "per_second": each * in_flight / took}


@contextlib.contextmanager
def stub(folder: Path) -> Iterator[str]:
    """Compile and run the server on the last core; gives its URL."""
    program = folder / "stub"
    subprocess.run(["cc", "-O2", "-o", program, Path(__file__).with_name("stub.c")], check=True)  # noqa: S607
    server = subprocess.Popen([program, str(_REPLY_BYTES)], stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(server.pid, {max(os.sched_getaffinity(0))})
    try:
        port = int(server.stdout.readline()) if server.stdout else 0
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        server.kill()
        server.wait()


def _in_fresh_process(name: str, url: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, "--one", name, "--url", url], check=True, stdout=subprocess.PIPE)
    return {key: float(value) for key, value in json.loads(done.stdout).items()}


def _compare(rounds: int) -> Iterator[Figure]:
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in _CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder, stub(Path(folder)) as url:
        for _ in range(rounds):
            for name in _CONTESTANTS:
                taken[name].append(_in_fresh_process(name, url))
    print(f"{'CPU-µs per request':24} {'median':>7} {'least':>7} {'most':>7} {'of bare':>8} {'per s':>8}")
    for name, figures in taken.items():
        costs = [figure["us"] for figure in figures]
        ratio = statistics.median(_ratios(figures, taken[_REFERENCE]))
        wall = statistics.median(figure["per_second"] for figure in figures)
        print(f"{name:24} {statistics.median(costs):7.1f} {min(costs):7.1f} {max(costs):7.1f} {ratio:8.3f} {wall:8.0f}")
    for name, figures in taken.items():
        print(json.dumps({"name": name, "cpu_us": [round(figure["us"], 2) for figure in figures]}))
    for name, figures in taken.items():
        if name != _REFERENCE:
            yield Figure.of_pairs(
                _ratios(figures, taken[_REFERENCE]), group=_GROUP, name=f"CPU per request, {name} / {_REFERENCE}"
            )
    yield Figure.of_pairs(
        _ratios(taken["WireTransport @4096"], taken["WireTransport @64"]),
        group=_GROUP,
        name="CPU per request, WireTransport @4096 / @64",
        note="The goal of 1.25 is the whole line's: see the durable path.",
    )


def _ratios(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> list[float]:
    return [a["us"] / b["us"] for a, b in zip(ours, theirs, strict=True)]


def main() -> None:
    """Compare all, or measure one in this process."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", choices=_CONTESTANTS, help="measure one of them in this process")
    parser.add_argument("--url")
    chosen = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
    if chosen.one is None:
        report(_compare(chosen.rounds), chosen.json)
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    kind, in_flight, requests = _CONTESTANTS[chosen.one]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_measure(kind, chosen.url, in_flight, requests))))


if __name__ == "__main__":
    main()
