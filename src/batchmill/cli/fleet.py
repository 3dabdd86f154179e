"""`batchmill worker --ray`: the same workers as actors on a Ray cluster, as many as the backlog wants."""

import asyncio
import hashlib
import os
import signal
import socket
import tempfile
from asyncio import AbstractEventLoop
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from urllib.parse import parse_qs, urlsplit

import structlog
import uvloop

from batchmill.assemble.backends import build_backends
from batchmill.assemble.storage import Storage, build_clock
from batchmill.backends.vllm import VllmOrder, shepherd_command
from batchmill.cli import data_directory
from batchmill.cli.engine import start_engine
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.option import say
from batchmill.cli.process import Order, work
from batchmill.cli.rows import in_rows
from batchmill.cli.supervisor import Child, Supervisor
from batchmill.fleet.ray import Fleet, NoCluster, Seen, connect
from batchmill.fleet.ray import Order as FleetOrder
from batchmill.schedule.scale import Left, Scale
from batchmill.settings import BackendSettings, BadSettings, Settings
from batchmill.spec.states import FINAL
from batchmill.store.backlog import read_backlog
from batchmill.store.dsn import read_dsn
from batchmill.telemetry import set_up_logs

_KEY = "BATCHMILL_ENGINE_KEY"
_HANDED_ON = ("AWS_", "AZURE_", "GOOGLE_", "PG")  # what a cloud's or a database's own library looks up
_LOOK_SECONDS = 5.0
_PATIENCE = 60.0  # seconds for which fewer workers must have done before some are let go
_ENDING = 10.0  # seconds that a worker's end may take beside its drain
_LINES: Mapping[str | None, int] = {None: 50_000, "builtin": 200, "vllm": 10_000}
"""Open lines for each worker: a minute or more of its work, so that it pays to start one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetWork:
    """A worker for a node: its settings as JSON, and what of the environment it must have if the node has it not.

    `engine` runs beside it, vLLM on `gpus` GPUs with `options` of its own. Secrets are among the first two, so neither
    is ever shown.
    """

    settings: str = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    engine: str | None = None
    gpus: int = 1
    options: Sequence[str] = ()

    def loop(self) -> AbstractEventLoop:
        """Return uvloop's, or asyncio's where an engine needs a process group of its own, which uvloop cannot give."""
        return asyncio.new_event_loop() if self.engine else uvloop.new_event_loop()

    async def run(self, stopping: asyncio.Event) -> None:
        """Be a worker in this process until `stopping` is set, and drain then."""
        settings = self.settle()
        set_up_logs(process="worker", json=settings.log_format == "json")
        data_directory.prepare(settings.data)
        lock = data_directory.lock(settings.data, shared=True)
        supervisor = Supervisor()
        try:
            built = None
            if self.engine == "builtin":
                built = await start_engine(
                    settings, supervisor, stopping, lock, say=structlog.get_logger("engine").info
                )
            elif self.engine == "vllm":
                settings = self._start_vllm(settings, supervisor)
            order = Order(role="worker", settings=settings, engine=built, data_fd=lock, heartbeat_fd=-1)
            await _while_watched(work(order, stopping=stopping), supervisor, stopping)
        finally:
            await supervisor.stop(("engine",), asyncio.Event())
            os.close(lock)

    def settle(self) -> Settings:
        """Read the settings; what the node's environment has of its own stays, such as a role of a cloud's."""
        for name, value in self.environment.items():
            os.environ.setdefault(name, value)
        settings = Settings.model_validate_json(self.settings)
        folder = Path(tempfile.gettempdir()) / f"batchmill-{os.getuid()}"  # for scratch; all workers of a node share it
        return settings if settings.data.is_absolute() else settings.model_copy(update={"data": folder})

    def _start_vllm(self, settings: Settings, supervisor: Supervisor) -> Settings:
        """Start vLLM and make it the one backend; it is not waited for, as no backend is."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ[_KEY] = key = token_hex(24)

        def order(heartbeat: int) -> bytes:
            return VllmOrder(
                model=str(settings.model),
                port=port,
                api_key=key,
                gpus=self.gpus,
                options=self.options,
                heartbeat_fd=heartbeat,
            ).line()

        supervisor.keep(
            Child(
                name="engine",
                command=shepherd_command(),
                order=order,
                descriptors=[],
                silence=settings.lease,
                grace=2.0,
                verdict=Exit.NO_BUILTIN_MODEL,
            )
        )
        backend = BackendSettings(url=f"http://127.0.0.1:{port}/v1", key_env=_KEY)
        return settings.model_copy(update={"backend": (backend,), "backend_key_env": ()})


async def _while_watched(
    working: Coroutine[object, object, None], supervisor: Supervisor, stopping: asyncio.Event
) -> None:
    """Work; end with the fault if the engine beside cannot be had at all."""
    task = asyncio.create_task(working)
    watching = asyncio.create_task(supervisor.watch(stopping))
    try:
        await asyncio.wait([task, watching], return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            await watching
        await task
    finally:
        for each in (task, watching):
            each.cancel()
        await asyncio.gather(task, watching, return_exceptions=True)  # raised above, or cancelled here


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLook:
    """What is left to do, as the rows say, for the actor that scales; `settings` as in `FleetWork`.

    A connection of its own for each look, every few seconds, costs less than one that is kept open.
    """

    work: FleetWork

    async def __call__(self) -> Left:
        """Ask the Store."""
        database = Storage(settings=self.work.settle(), clock=build_clock(), role="fleet").database
        try:
            backlog = await database.read(read_backlog)
        finally:
            await database.close()
        unfinished = sum(count for status, count in backlog.batches.items() if status not in FINAL)
        return Left(lines=backlog.open_lines, batches=unfinished)


def run_fleet(
    settings: Settings,
    *,
    address: str | None = None,
    least: int = 1,
    most: int = 4,
    engine: str | None = None,
    gpus: int = 1,
    options: Sequence[str] = (),
) -> None:
    """Keep workers on a Ray cluster until Ctrl-C; they and their scaling go on without this process.

    `address` is the cluster's (None: RAY_ADDRESS, one of this machine, or else a new one that ends with this process).
    With `most` = 0 every worker drains and nothing is left.

    Raises:
        Stop: what is needed is not there, or makes no sense together.
    """
    _refuse(settings, engine, most)
    try:
        scale = Scale(least=least if most else 0, most=most, lines=_LINES[engine], patience=_PATIENCE)
    except ValueError as fault:
        raise Stop(f"--min and --max: {fault}.", Exit.USAGE) from fault
    set_up_logs(process="fleet", json=settings.log_format == "json")
    in_rows(settings, lambda _: None)  # the tables, before the first worker needs them
    work = FleetWork(
        settings=settings.model_dump_json(exclude={"settings"}),
        environment=_environment(settings, os.environ),
        engine=engine,
        gpus=gpus,
        options=options,
    )
    order = FleetOrder(
        work=work,
        look=FleetLook(work=work),
        scale=scale,
        cpus=1.0,
        gpus=float(gpus) if engine == "vllm" else 0.0,
        grace=settings.drain + _ENDING,
        every=_LOOK_SECONDS,
    )
    try:
        is_ours = connect(address)
    except NoCluster as fault:
        raise Stop(str(fault), Exit.USAGE) from fault
    asyncio.run(_follow(order, namespace_of(settings), is_ours=is_ours))


async def _follow(order: FleetOrder, namespace: str, *, is_ours: bool) -> None:
    stop, at_once = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: at_once.set() if stop.is_set() else stop.set())
    fleet = Fleet(namespace=namespace)
    if order.scale.most:
        await fleet.follow(order)
        say(f"Workers from {order.scale.least} to {order.scale.most} follow the backlog, as {namespace} of Ray.")
        await _tell(fleet, stop)
    if order.scale.most and not is_ours:
        say("The workers go on without this command. It comes back to them when given again; --max 0 ends them.")
        return
    ending = asyncio.create_task(fleet.end(grace=order.grace))
    hurry = asyncio.create_task(at_once.wait())
    await asyncio.wait([ending, hurry], return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=not ending.done())
    say("Stopped at once." if ending.cancelled() else "No worker is left.")


async def _tell(fleet: Fleet, stop: asyncio.Event) -> None:
    """Say what changes, until `stop` is set."""
    told = Seen()  # as a scaler that has seen nothing yet
    while not stop.is_set():
        seen = await fleet.seen()
        if seen not in (None, told):
            left = {} if seen.left is None else {"lines": seen.left.lines, "batches": seen.left.batches}
            structlog.get_logger("fleet").info(
                "fleet", workers=seen.workers, wanted=seen.wanted, draining=seen.draining, **left
            )
            told = seen
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=_LOOK_SECONDS)


def _refuse(settings: Settings, engine: str | None, most: int) -> None:
    """Refuse what cannot work on several machines, before anything is started on them."""
    if settings.database is None or (most and settings.blobs is None):
        raise Stop(
            "Workers on a cluster share their rows and bytes: name a PostgreSQL server with --database and a bucket"
            " with --blobs.",
            Exit.USAGE,
        )
    if engine not in _LINES:
        raise Stop(f"--engine is builtin or vllm, not {engine}.", Exit.USAGE)
    if most and (engine is None) == (not settings.backend):
        raise Stop("Say where requests go: either --backend URL, or --engine builtin or vllm.", Exit.USAGE)
    if engine == "vllm" and settings.model is None:
        raise Stop("--engine vllm needs --model: a name of the Hugging Face hub, or a folder of the nodes.", Exit.USAGE)
    try:
        build_backends(settings=settings, engine=None, clock=build_clock())
    except BadSettings as fault:
        raise Stop(str(fault), Exit.USAGE) from fault


def _environment(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what of this process's environment a worker needs elsewhere: keys, and what finds a bucket."""
    keys = {backend.key_env for backend in settings.backends}
    return {name: value for name, value in environment.items() if name in keys or name.startswith(_HANDED_ON)}


def namespace_of(settings: Settings) -> str:
    """Return the name of the database's fleet: the same for who may spell its user or password otherwise."""
    parts = urlsplit(read_dsn(settings.database or "")["dsn"])
    hosts = [host if ":" in host else f"{host}:5432" for host in parts.netloc.split(",")]
    place = f"{','.join(hosts)}{parts.path}?{parse_qs(parts.query).get('host')}"
    return f"batchmill-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
