"""`batchmill serve`: the API, one worker and the built-in engine, kept alive around one data directory."""

import asyncio
import signal
import socket
from collections.abc import Mapping
from contextlib import closing

import structlog
from sqlalchemy.exc import SQLAlchemyError

from batchmill.assemble import Engine, Storage, build_backends, build_clock
from batchmill.cli import data_directory
from batchmill.cli.engine import answers, start_engine, wait_for
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.keys import make_key
from batchmill.cli.process import Order
from batchmill.cli.supervisor import Child, Supervisor, python_module
from batchmill.settings import BadSettings, Settings
from batchmill.store.batch import unstick
from batchmill.store.migrate import NewerDatabase, migrate
from batchmill.store.organisation import has_keys
from batchmill.telemetry import set_up_logs

_READY_SECONDS = 5.0  # all parts together; then the address is printed all the same
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
    say = structlog.get_logger("serve").info
    try:
        engine = None if settings.backend else await start_engine(settings, supervisor, stop, lock, say=say)
        for role in ("worker", "api"):
            supervisor.keep(_child(role, settings, engine, listening[role], lock))
        # A pasted snippet must work; a backend that is away is not waited for any longer.
        host, port = listening["api"].getsockname()[:2]
        await wait_for(answers(host, port, "/readyz"), _READY_SECONDS, supervisor, stop)
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
        made = await database.write(lambda tx: make_key(tx, org="default", now=clock.now()))
    except (SQLAlchemyError, OSError) as fault:
        raise Stop(f"The database in {settings.data} cannot be used: {fault}.", Exit.DATA_UNUSABLE) from fault
    except NewerDatabase as fault:
        raise Stop(
            f"The data directory {settings.data} was used by a newer Batchmill: {fault}.", Exit.DATA_UNUSABLE
        ) from fault
    else:
        return made.key
    finally:
        await database.close()


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
