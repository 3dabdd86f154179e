"""One child process of `serve` or `worker`: what the API and the worker run as.

The supervisor writes the order, one line of JSON, to the child's standard input and keeps that pipe open; when it
closes, the supervisor is gone, and the child ends at once. The child writes a byte a second to `heartbeat_fd`.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal

import structlog
import uvicorn
import uvloop
from pydantic import BaseModel, ConfigDict, ValidationError

from batchmill.api.gate import App
from batchmill.api.protocol import BoundedProtocol
from batchmill.assemble.api import build_api, build_metrics
from batchmill.assemble.backends import Engine, build_backends, build_hook
from batchmill.assemble.limits import limits_of
from batchmill.assemble.storage import Storage, build_clock
from batchmill.assemble.traces import traces_of
from batchmill.assemble.worker import build_worker
from batchmill.backends.builtin import EXIT_CANNOT
from batchmill.clock import Clock
from batchmill.settings import Settings
from batchmill.spec.limits import Limits
from batchmill.telemetry import Metrics, set_up_logs

_STDIN = 0
_GC_OBJECTS = 50_000  # made and not freed: some megabytes
_BEAT_SECONDS = 0.5
_API_PATIENCE = 5.0  # seconds: a client that hears 503 asks again by itself
_GRACE_SECONDS = 5  # open answers of the API may end so long after SIGTERM
_METRICS_OPEN = 16  # scrapes at a time: nobody may take the worker's descriptors
_METRICS_SECONDS = 1  # an open scrape may hold up the worker's end so long


class Order(BaseModel):
    """What a child is to be.

    `listen_fd` is the socket that the API answers on, `metrics_fd` that of `/metrics`, of a worker or of an API without
    one. `data_fd` is the data directory's lock, held for as long as the process lives.
    """

    model_config = ConfigDict(frozen=True)

    role: Literal["api", "worker"]
    settings: Settings
    engine: Engine | None
    listen_fd: int | None = None
    metrics_fd: int | None = None
    data_fd: int
    heartbeat_fd: int


def main() -> None:
    """Read the order and be that process."""
    order = _read_order()
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    set_up_logs(process=order.role, json=order.settings.log_format == "json")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, who stops us in order
    run = {"api": _api, "worker": _worker}[order.role]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_beating(run(order), order.heartbeat_fd))


def _read_order() -> Order:
    """Return the order; end where a new start could not read it either, as where another version wrote it."""
    with open(_STDIN, "rb", buffering=0, closefd=False) as stdin:  # unbuffered: nothing past the line is taken
        line = stdin.readline()
    if not line:
        sys.exit(1)  # the supervisor died before it said anything
    try:
        return Order.model_validate_json(line)
    except ValidationError as fault:
        wrong = fault.errors(include_url=False, include_context=False, include_input=False)[0]  # an input may be secret
        member = ".".join(map(str, wrong["loc"])) or "the line"
        sentence = f"The order cannot be read ({member}: {wrong['msg']}); was Batchmill upgraded while it ran?"
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201 - there is no log yet
        sys.exit(EXIT_CANNOT)


async def _api(order: Order) -> None:
    settings, clock = order.settings, build_clock()
    storage = Storage(settings=settings, clock=clock, role="api", patience=_API_PATIENCE)

    def end() -> None:
        server.should_exit = True  # the supervisor starts the next one, which recovers

    with traces_of("api") as traces:
        app = build_api(
            settings=settings,
            storage=storage,
            clock=clock,
            broken=end,
            stopping=lambda: server.should_exit,
            traces=traces,
        )
        server = uvicorn.Server(
            server_config(
                app,
                limits=limits_of(settings),
                trusted_proxies=settings.trusted_proxies,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        async with _serving_metrics(order, metrics=Metrics(), storage=storage, clock=clock):
            await server.serve(sockets=[socket.socket(fileno=order.listen_fd)])
    await storage.database.close()


def spare_garbage_collection() -> None:
    """Look for cycles seldom: what is there at the start stays, and what a line leaves is freed without.

    By default every 700 objects cost a look, and some looks go through all that is in flight, line for line.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_OBJECTS, *gc.get_threshold()[1:])


def raise_descriptors() -> None:
    """Allow as many descriptors as the system lets this process have: a thousand, the usual, are few connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _worker(order: Order) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await work(order, stopping=stopping)


async def work(order: Order, *, stopping: asyncio.Event) -> None:
    """Be a worker in this process until `stopping` is set, and drain then."""
    spare_garbage_collection()
    raise_descriptors()
    settings, clock, metrics = order.settings, build_clock(), Metrics()
    storage = Storage(settings=settings, clock=clock, metrics=metrics, role="worker", patience=settings.lease)
    backends = build_backends(settings=settings, engine=order.engine, clock=clock)
    hook = build_hook(settings)
    with traces_of("worker") as traces:
        worker = build_worker(
            settings=settings,
            storage=storage,
            backends=backends,
            clock=clock,
            alone=settings.is_embedded,
            metrics=metrics,
            hook=hook,
            traces=traces,
        )
        async with _serving_metrics(order, metrics=metrics, storage=storage, clock=clock):
            await worker.run(stopping=stopping, drain=settings.drain)
    for backend, _ in backends:
        await backend.close()
    await hook.close()
    await storage.database.close()


@asynccontextmanager
async def _serving_metrics(order: Order, *, metrics: Metrics, storage: Storage, clock: Clock) -> AsyncIterator[None]:
    """Serve `/metrics` beside what this process does, if it was given a socket for that."""
    if order.metrics_fd is None:
        yield
        return
    app = build_metrics(settings=order.settings, metrics=metrics, storage=storage, clock=clock)
    server = _Beside(
        server_config(
            app,
            limits=limits_of(order.settings),
            timeout_graceful_shutdown=_METRICS_SECONDS,
            limit_concurrency=_METRICS_OPEN,
        )
    )
    scrapes = asyncio.create_task(server.serve(sockets=[socket.socket(fileno=order.metrics_fd)]))
    yield
    server.should_exit = True
    await _end(scrapes)


class _Beside(uvicorn.Server):
    """Serves `/metrics` in the loop of a worker, or of the API; signals are theirs alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals as they are."""
        yield


async def _end(scrapes: "asyncio.Task[None]") -> None:
    """Wait for the end of `/metrics`, but not for long: numbers never keep a worker from ending."""
    await asyncio.wait([scrapes], timeout=2.0 * _METRICS_SECONDS)
    scrapes.cancel()
    (outcome,) = await asyncio.gather(scrapes, return_exceptions=True)
    if isinstance(outcome, Exception):
        structlog.get_logger("metrics").error("/metrics was not served", error=repr(outcome))


def server_config(
    app: App,
    *,
    limits: Limits,
    trusted_proxies: Sequence[str] = (),
    **more: Any,  # noqa: ANN401 - uvicorn's own options
) -> uvicorn.Config:
    """Return how HTTP is served: strict framing within `limits`, only our own answers and logs (reliability 4.6).

    What a client says of its address is believed from the `trusted_proxies` alone (D12).
    """
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    protocol: Any = partial(BoundedProtocol, limits=limits)  # uvicorn only calls it
    return uvicorn.Config(
        app,
        interface="asgi3",
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # a client's nonsense is told to that client
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        **more,
    )


def _is_news(record: logging.LogRecord) -> bool:
    """Say whether nobody else tells it: an answer that is cut off is told by who cuts it, if it is a fault at all."""
    return "returned without completing response" not in record.getMessage()


async def _beating(run: Coroutine[object, object, None], descriptor: int) -> None:
    beats = asyncio.create_task(_beat(descriptor))
    await run
    beats.cancel()


async def _beat(descriptor: int) -> None:
    """Show the supervisor that the event loop turns; the pipe is emptied all the time, so the write never blocks."""
    while True:
        os.write(descriptor, b".")
        await asyncio.sleep(_BEAT_SECONDS)


def _end_with_supervisor() -> None:
    while os.read(_STDIN, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
