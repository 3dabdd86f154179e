"""`batchmill serve`: the API, one worker and the built-in engine, kept alive around one data directory."""

import asyncio
import secrets
import signal
import socket
from collections.abc import Coroutine, Mapping
from contextlib import closing
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from batchmill.assemble import Engine, Storage, build_backends, build_clock
from batchmill.backends.builtin import BUILTIN_MODEL, EXIT_CANNOT, EngineOrder, engine_command
from batchmill.backends.weights import WeightsMissing, default_cache_dir, find_or_fetch
from batchmill.cli import data_directory
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.keys import make_key
from batchmill.cli.process import Order
from batchmill.cli.supervisor import Child, Supervisor, python_module
from batchmill.settings import BadSettings, Settings
from batchmill.store.batch import unstick
from batchmill.store.migrate import NewerDatabase, migrate
from batchmill.store.organisation import has_keys
from batchmill.telemetry import set_up_logs

_ENGINE_SECONDS = 60.0  # the engine may take so long until it answers
_READY_SECONDS = 5.0  # all parts together; then the address is printed all the same
_ENGINE_SILENCE = 10.0  # it beats once a second, and not at all while it loads
_LOOK_SECONDS = 0.1
_BACKLOG = 2048

_WELCOME = """\
Your API key, shown only this once:  {key}

Try it with a line of your own (models: GET {url}/v1/models):

  curl {url}/v1/models -H "Authorization: Bearer {key}"

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="{key}")
  print([model.id for model in client.models.list()])
"""


def run_serve(settings: Settings) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        Stop: what is needed is not there.
    """
    set_up_logs(process="serve", json=settings.log_format == "json")
    _check_backends(settings)
    data_directory.prepare(settings.data)
    lock = data_directory.lock(settings.data)  # first: the children of a killed `serve` hold the port, too
    host, port = settings.host, settings.port_of_metrics
    with (
        closing(_listen(host, settings.port)) as listening,
        closing(_listen(host, port, hint=" It is for /metrics: choose another with --metrics-port.")) as metrics,
    ):
        asyncio.run(_serve(settings, {"api": listening, "worker": metrics}, lock))


def _check_backends(settings: Settings) -> None:
    try:
        build_backends(settings=settings, engine=None, clock=build_clock())
    except BadSettings as fault:
        raise Stop(str(fault), Exit.USAGE) from fault


def _listen(host: str, port: int, *, hint: str = "") -> socket.socket:
    """Bind a socket that the children inherit: one that is started again finds it as the last one left it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as fault:
        listening.close()
        raise Stop(f"Cannot listen on {host}:{port}: {fault.strerror}.{hint}", Exit.PORT_TAKEN) from fault
    return listening


async def _serve(settings: Settings, listening: Mapping[str, socket.socket], lock: int) -> None:
    stop, at_once = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: at_once.set() if stop.is_set() else stop.set())
    key = await _prepare_store(settings)
    url = _url(listening["api"])
    supervisor = Supervisor()
    try:
        engine = None if settings.backend else await _start_engine(settings, supervisor, stop, lock)
        for role in ("worker", "api"):
            supervisor.keep(_child(role, settings, engine, listening[role], lock))
        # A pasted snippet must work; a backend that is away is not waited for any longer.
        host, port = listening["api"].getsockname()[:2]
        await _wait(_answers(host, port, "/readyz"), _READY_SECONDS, supervisor, stop)
        told = f"Batchmill listens on {url}\nMetrics on {_url(listening['worker'])}/metrics"
        print(told, flush=True)  # noqa: T201 - this is for the one who started it
        if key is not None:
            print(_WELCOME.format(url=url, key=key), flush=True)  # noqa: T201 - the key must not go through the log
        await supervisor.watch(stop)
    finally:
        structlog.get_logger("serve").info("stopping")
        await supervisor.stop(("api", "worker", "engine"), at_once)


async def _prepare_store(settings: Settings) -> str | None:
    """Bring the tables up to date; on the first start make an organisation and a key, and return the key."""
    clock = build_clock()
    try:
        database = Storage(settings=settings, clock=clock).database
    except BadSettings as fault:
        raise Stop(str(fault), Exit.USAGE) from fault
    try:
        await database.write(migrate)
        await database.write(unstick)
        if await database.read(has_keys):
            return None
        made = await database.write(lambda tx: make_key(tx, name="default", now=clock.now()))
    except SQLAlchemyError as fault:
        raise Stop(f"The database in {settings.data} cannot be used: {fault}.", Exit.DATA_UNUSABLE) from fault
    except NewerDatabase as fault:
        raise Stop(
            f"The data directory {settings.data} was used by a newer Batchmill: {fault}.", Exit.DATA_UNUSABLE
        ) from fault
    else:
        return made.key
    finally:
        await database.close()


async def _start_engine(settings: Settings, supervisor: Supervisor, stop: asyncio.Event, lock: int) -> Engine:
    """Start the built-in engine and wait until it answers."""
    model = await asyncio.to_thread(_weights) if settings.model is None else settings.model
    if not model.is_file():
        raise Stop(f"There is no model file {model}.", Exit.NO_BUILTIN_MODEL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = secrets.token_hex(24)
    alias = BUILTIN_MODEL if settings.model is None else settings.model.stem
    path = str(model.resolve())

    def order(heartbeat: int) -> bytes:
        return EngineOrder(model=path, port=port, api_key=key, alias=alias, heartbeat_fd=heartbeat).line()

    child = Child(
        name="engine",
        command=engine_command(),
        order=order,
        descriptors=[lock],
        silence=max(settings.lease, _ENGINE_SILENCE),
        grace=2.0,
        hopeless=EXIT_CANNOT,
    )
    supervisor.keep(child)
    await _wait(_answers("127.0.0.1", port, "/health"), _ENGINE_SECONDS, supervisor, stop)
    return Engine(url=f"http://127.0.0.1:{port}/v1", key=key)


def _weights() -> Path:
    try:
        return find_or_fetch(default_cache_dir(), structlog.get_logger("serve").info)
    except WeightsMissing as fault:
        raise Stop(str(fault), Exit.NO_BUILTIN_MODEL) from fault


async def _wait(
    answers: Coroutine[object, object, None], seconds: float, supervisor: Supervisor, stop: asyncio.Event
) -> None:
    """Return when it answers, when `stop` is set, or after this time; raise what makes going on impossible."""
    answering = asyncio.create_task(answers)
    watching = asyncio.create_task(supervisor.watch(stop))
    await asyncio.wait([answering, watching], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    answering.cancel()
    if watching.done():
        await watching
    watching.cancel()


async def _answers(host: str, port: int, path: str) -> None:
    """Return when this path answers 200."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            status = await reader.readline()
            writer.close()
        except OSError:
            status = b""
        if b" 200 " in status:
            return
        await asyncio.sleep(_LOOK_SECONDS)


def _child(role: str, settings: Settings, engine: Engine | None, listening: socket.socket, lock: int) -> Child:
    def order(heartbeat: int) -> bytes:
        told = Order.model_validate(
            {
                "role": role,
                "settings": settings,
                "engine": engine,
                "listen_fd": listening.fileno(),
                "data_fd": lock,
                "heartbeat_fd": heartbeat,
            }
        )
        return told.model_dump_json().encode() + b"\n"

    return Child(
        name=role,
        command=[*python_module("batchmill.cli.process"), role],  # the role is for people who read `ps`
        order=order,
        descriptors=[lock, listening.fileno()],
        silence=settings.lease,
        grace=settings.drain + 10.0 if role == "worker" else 10.0,
    )


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
