"""Starts the product's processes by fork: a zygote that has imported everything makes a worker in milliseconds.

The zygote is forked before there is any thread or event loop, and never makes one itself. What it starts are the very
processes of `batchmill serve` (`cli/process.py`), but for `alone`: many workers share one data directory here, so that
leases are taken over and fences refuse. It listens to orders and tells of deaths on one socket, a line of JSON each.
"""

import asyncio
import json
import os
import random
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from queue import Queue
from typing import Any, NoReturn

import structlog
import uvicorn
import uvloop

from batchmill.assemble.api import build_api
from batchmill.assemble.backends import build_backends
from batchmill.assemble.limits import limits_of
from batchmill.assemble.storage import Storage, build_clock
from batchmill.assemble.worker import build_worker
from batchmill.cli.process import server_config
from batchmill.engine import finalizer, sweeper
from batchmill.ledger import ledger
from batchmill.settings import BackendSettings, Settings
from batchmill.store.database import Transaction
from batchmill.store.postgres import PostgresDatabase
from batchmill.telemetry import Metrics, set_up_logs
from faults.planted import plant

LEASE = 1.0
WINDOW = 8
STALE_SECONDS = 8  # what has an hour in production: longer than any stop or lock of a run
_ORPHAN_SECONDS = 2
_STUCK_SECONDS = 1  # a batch that five workers died over, as happens here, is tried again: else all might be stuck
_GRACE_SECONDS = 1  # open answers of the API may end so long after SIGTERM


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What every process of a run is told: where the rows and bytes are, whom to ask, and which bug is planted."""

    ground: Mapping[str, Any]  # settings of the product
    environment: Mapping[str, str]
    log: str
    backend: str
    listening: int  # the API's socket: it outlives any API process, so that nobody is refused
    planted: str = ""
    drain: float = 0.5
    timeout: float = 3.0
    lease: float = LEASE

    def settings(self) -> Settings:
        """Return the product's settings."""
        return Settings(
            **self.ground,
            limits="open",
            lease=self.lease,
            window=WINDOW,
            drain=self.drain,
            backend=(BackendSettings(url=self.backend, timeout=self.timeout),),
            log_format="json",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A process has ended: `status` as of `os.waitstatus_to_exitcode`, negative for a signal."""

    pid: int
    status: int


class Launcher:
    """Orders processes from the zygote. Make it before any thread exists in this process."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        if threading.active_count() != 1:
            raise RuntimeError("the zygote must be forked before there are threads")
        self.pid = os.fork()
        if self.pid == 0:
            _close_after(lambda: _be_zygote(theirs), mine)
        theirs.close()
        self._socket = mine
        self._started: Queue[int] = Queue()
        self._lock = threading.Lock()
        self._on_death: Callable[[Death], None] = lambda _: None
        threading.Thread(target=self._listen, daemon=True).start()

    def listen(self, on_death: Callable[[Death], None]) -> None:
        """Tell this function of each death from now on; it is called in a thread of its own."""
        self._on_death = on_death

    def start(self, site: Site, role: str, name: str) -> int:
        """Start a `worker` or the `api` and return its pid."""
        with self._lock:
            order = {"site": asdict(site), "role": role, "name": name}
            self._socket.sendall(json.dumps(order).encode() + b"\n")
            return self._started.get(timeout=30)

    def _listen(self) -> None:
        with self._socket.makefile() as lines:
            for line in lines:
                told = json.loads(line)
                if "started" in told:
                    self._started.put(told["started"])
                else:
                    self._on_death(Death(**told))


def _close_after(run: Callable[[], None], *unneeded: socket.socket) -> NoReturn:
    """Be another process from here on: close what is not its own, run, and never return into the parent's code."""
    code = 1
    try:
        for each in unneeded:
            each.close()
        run()
        code = 0
    except BaseException:  # noqa: BLE001 - the last word of a process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _be_zygote(orders: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    woken, wake = socket.socketpair()
    for each in (woken, wake):
        each.setblocking(False)  # noqa: FBT003 - the library's own signature
    signal.signal(signal.SIGCHLD, lambda *_: None)  # the byte in the pipe is what counts
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    waiting = b""
    while True:
        ready, _, _ = select.select([orders, woken], [], [])
        if woken in ready:
            with suppress(BlockingIOError):
                woken.recv(4096)
            _tell_deaths(orders)
        if orders in ready:
            got = orders.recv(4096)
            if not got:
                return
            *lines, waiting = (waiting + got).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    order = json.loads(line)
                    _close_after(lambda order=order: _be(**order), orders, woken, wake)  # type: ignore[misc]
                _tell(orders, {"started": pid})


def _tell_deaths(orders: socket.socket) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _tell(orders, asdict(Death(pid=ended[0], status=os.waitstatus_to_exitcode(ended[1]))))


def _tell(orders: socket.socket, said: dict[str, Any]) -> None:
    orders.sendall(json.dumps(said).encode() + b"\n")


def _be(*, site: dict[str, Any], role: str, name: str) -> None:
    """Be that process until SIGTERM, with its log at the end of the run's one log."""
    told = Site(**site)
    os.environ.update(told.environment)
    log = os.open(told.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, sys.stderr.fileno())
    random.seed()  # the zygote's state would be the same in all of them
    sweeper._STALE_SECONDS = STALE_SECONDS  # the run must see the janitor at work
    sweeper._ORPHAN_SECONDS = _ORPHAN_SECONDS
    sweeper._STUCK_SECONDS = _STUCK_SECONDS
    set_up_logs(process=name, json=True)
    _tell_refusals()
    _name_sessions(name)
    plant(told.planted)
    run = {"api": _api, "worker": _worker}[role]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(told))


def _tell_refusals() -> None:
    """Log each write that a fence has refused, also where its worker ends before it learns of that."""
    log = structlog.get_logger("harness")

    def told(write: Callable[..., bool], event: str) -> Callable[..., bool]:
        def watched(tx: Transaction, **of: Any) -> bool:  # noqa: ANN401 - whatever the write takes
            stands = write(tx, **of)
            if not stands:
                log.info(event)
            return stands

        return watched

    ledger.record_done = told(ledger.record_done, "fence refused a commit")  # type: ignore[attr-defined]
    finalizer.advance = told(finalizer.advance, "fence refused a seal")  # type: ignore[attr-defined]


def _name_sessions(name: str) -> None:
    """Tell PostgreSQL which process a session is of: one of them may be held; and log each commit that is in doubt."""
    log = structlog.get_logger("harness")
    make, ask = PostgresDatabase.__init__, PostgresDatabase._is_committed

    def named(self: PostgresDatabase, **of: Any) -> None:  # noqa: ANN401 - whatever it takes
        make(self, **{**of, "role": name})

    async def told(self: PostgresDatabase, doubt: Any, until: float) -> bool:  # noqa: ANN401 - as it is
        committed = await ask(self, doubt, until)
        log.info("a commit was in doubt", committed=committed)
        return committed

    PostgresDatabase.__init__ = named  # type: ignore[method-assign]
    PostgresDatabase._is_committed = told  # type: ignore[method-assign]


async def _api(site: Site) -> None:
    settings, clock = site.settings(), build_clock()
    storage = Storage(settings=settings, clock=clock)
    app = build_api(settings=settings, storage=storage, clock=clock, broken=lambda: None)
    config = server_config(app, limits=limits_of(settings), timeout_graceful_shutdown=_GRACE_SECONDS)
    await uvicorn.Server(config).serve(sockets=[socket.socket(fileno=os.dup(site.listening))])
    await storage.database.close()


async def _worker(site: Site) -> None:
    settings, clock, metrics = site.settings(), build_clock(), Metrics()
    storage = Storage(settings=settings, clock=clock, metrics=metrics)
    backends = build_backends(settings=settings, engine=None, clock=clock)
    worker = build_worker(
        settings=settings, storage=storage, backends=backends, clock=clock, alone=False, metrics=metrics
    )
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    try:
        await worker.run(stopping=stopping, drain=settings.drain)
        for backend, _ in backends:
            await backend.close()
    finally:  # an interpreter that ends waits for the writer's thread: a write that is under way comes, too late or not
        await storage.database.close()
