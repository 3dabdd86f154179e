"""`batchmill serve` and `batchmill worker`: the API, a worker and the built-in engine, kept alive by a supervisor."""

import asyncio
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing

import structlog

from batchmill.assemble.backends import Engine, build_backends
from batchmill.assemble.storage import build_clock
from batchmill.assemble.traces import wants_traces
from batchmill.cli import data_directory
from batchmill.cli.engine import answers, start_engine, wait_for
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.keys import make_key
from batchmill.cli.process import Order
from batchmill.cli.rows import check_bytes, in_rows
from batchmill.cli.supervisor import Child, Supervisor, python_module
from batchmill.settings import BadSettings, Settings
from batchmill.spec.scopes import Scope
from batchmill.store.batch import pass_over, unstick
from batchmill.store.database import Transaction
from batchmill.store.organisation import has_keys
from batchmill.store.worker import has_live_worker
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


_NO_KEY = """\
There is no API key yet. Make one, which is shown only once, with:  batchmill keys create
"""


def run_serve(settings: Settings) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        Stop: what is needed is not there.
    """
    if not settings.worker:
        _refuse_bytes_of_one_machine(settings, "An API without a worker")
    _run(settings, ("worker", "api") if settings.worker else ("api",))


def run_worker(settings: Settings) -> None:
    """Work on the batches of servers elsewhere, until Ctrl-C or SIGTERM.

    Raises:
        Stop: what is needed is not there.
    """
    if settings.is_embedded:
        raise Stop(
            "A worker of its own shares its rows with others, which SQLite cannot: name a PostgreSQL server with"
            " --database. (`batchmill serve` has a worker already.)",
            Exit.USAGE,
        )
    _refuse_bytes_of_one_machine(settings, "A worker of its own")
    _run(settings, ("worker",))


def _refuse_bytes_of_one_machine(settings: Settings, who: str) -> None:
    """Refuse a process apart that would look for the others' bytes in a folder of its own, and not find them."""
    if settings.blobs is None:
        raise Stop(f"{who} shares its bytes with others: name a bucket with --blobs.", Exit.USAGE)


def _run(settings: Settings, roles: Sequence[str]) -> None:
    set_up_logs(process=roles[-1] if len(roles) == 1 else "serve", json=settings.log_format == "json")
    if "worker" in roles:
        _check_backends(settings)
    data_directory.prepare(settings.data)
    check_bytes(settings)
    # First: the children of a killed `serve` hold the port, too.
    lock = data_directory.lock(settings.data, shared=not settings.is_embedded)
    host, port = settings.host, settings.port_of_metrics
    with ExitStack() as held:
        listening = {}
        if "api" in roles:  # what people know comes first: its port is the one to be told of
            listening["api"] = held.enter_context(closing(_listen(host, settings.port)))
        hint = " It is for /metrics: choose another with --metrics-port."
        listening["metrics"] = held.enter_context(closing(_listen(host, port, hint=hint)))
        asyncio.run(_serve(settings, roles, listening, lock))


def _check_backends(settings: Settings) -> None:
    try:
        build_backends(settings=settings, engine=None, clock=build_clock())
        wants_traces(os.environ)
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


async def _serve(settings: Settings, roles: Sequence[str], listening: Mapping[str, socket.socket], lock: int) -> None:
    stop, at_once = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: at_once.set() if stop.is_set() else stop.set())
    key = await asyncio.to_thread(_prepare_store, settings)
    supervisor = Supervisor()
    log = structlog.get_logger("serve")
    try:
        is_builtin = not settings.backend and "worker" in roles
        engine = await start_engine(settings, supervisor, stop, lock, say=log.info) if is_builtin else None
        for role in roles:
            supervisor.keep(_child(role, settings, engine, listening, lock, is_first=role == roles[0]))
        # A pasted snippet must work; a backend that is away is not waited for any longer.
        part, path = (
            ("api", "/readyz" if "worker" in roles else "/healthz") if "api" in roles else ("metrics", "/healthz")
        )
        host, port = listening[part].getsockname()[:2]
        await wait_for(answers(host, port, path), _READY_SECONDS, supervisor, stop)
        _tell(listening, key, dashboard=settings.dashboard)
        await supervisor.watch(stop)
    finally:
        log.info("stopping")
        await supervisor.stop(("api", "worker", "engine"), at_once)


def _tell(listening: Mapping[str, socket.socket], key: str | None, *, dashboard: bool) -> None:
    """Tell the one who started it where it listens; a key must not go through the log."""
    api = listening.get("api")
    if api is not None:
        print(f"Batchmill listens on {_url(api)}")  # noqa: T201 - as said
        if dashboard:
            print(f"Dashboard on {_url(api)}/")  # noqa: T201 - as said
    print(f"Metrics on {_url(listening['metrics'])}/metrics", flush=True)  # noqa: T201 - as said
    if api is not None and key is not None:
        print(_WELCOME.format(url=_url(api), key=key) if key else _NO_KEY, flush=True)  # noqa: T201 - as said


def _prepare_store(settings: Settings) -> str | None:
    """Bring the tables up to date; make an organisation and a key where there are none, and return the key.

    It may do everything in its organisation, keys and usage included: it is its owner's, who has no other yet. Where
    rows are shared no key is made, since what is printed there is kept in logs: "" where one is missing.
    """
    now = build_clock().now()

    def statements(tx: Transaction) -> str | None:
        begin_anew(tx, shared=not settings.is_embedded)
        if has_keys(tx):
            return None
        return make_key(tx, org="default", now=now, scopes=set(Scope)).key if settings.is_embedded else ""

    return in_rows(settings, statements)


def begin_anew(tx: Transaction, *, shared: bool) -> None:
    """Give every batch all its tries again, and let the time until now count in no rate, as a fresh start does.

    Where rows are `shared`, a start is a scheduler's more often than an operator's: a worker whose machine it starts
    again each time a batch kills it must not forget that it did. What is stuck there is tried again by and by.
    """
    if not shared:
        unstick(tx)
    if not (shared and has_live_worker(tx)):  # else others have worked all the time
        pass_over(tx)


def _child(
    role: str,
    settings: Settings,
    engine: Engine | None,
    listening: Mapping[str, socket.socket],
    lock: int,
    *,
    is_first: bool,
) -> Child:
    """Return a process to keep alive; the first one serves the metrics: the worker, or an API without one."""
    sockets = {"listen_fd": listening.get("api") if role == "api" else None}
    sockets["metrics_fd"] = listening["metrics"] if is_first else None
    descriptors = {name: found.fileno() for name, found in sockets.items() if found is not None}

    def order(heartbeat: int) -> bytes:
        told = Order.model_validate(
            {
                "role": role,
                "settings": settings,
                "engine": engine,
                "data_fd": lock,
                "heartbeat_fd": heartbeat,
                **descriptors,
            }
        )
        return told.model_dump_json().encode() + b"\n"

    return Child(
        name=role,
        command=[*python_module("batchmill.cli.process"), role],  # the role is for people who read `ps`
        order=order,
        descriptors=[lock, *descriptors.values()],
        silence=settings.lease,
        grace=settings.drain + 10.0 if role == "worker" else 10.0,
    )


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
