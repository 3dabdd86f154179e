"""The backends that the settings or an operator name: the only file that knows which kinds there are."""

import os
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from batchmill.assemble.limits import limits_of
from batchmill.backends.aiohttp_transport import AiohttpTransport
from batchmill.backends.backend import Backend
from batchmill.backends.builtin import BUILTIN_MODEL, BUILTIN_SLOTS
from batchmill.backends.echo import EchoBackend
from batchmill.backends.hook import HttpHook
from batchmill.backends.http import HttpBackend, name_of
from batchmill.backends.packing import PackingBackend
from batchmill.backends.wire import WireTransport
from batchmill.clock import Clock
from batchmill.engine.lanes import Lane
from batchmill.schedule.pace import MOST, WINDOW, Pace
from batchmill.settings import BackendSettings, BadSettings, Settings
from batchmill.store.roster import Entry

_OTHER_DESCRIPTORS = 128  # of a process, for files, rows and logs
_TRANSPORTS: dict[str, type[WireTransport] | type[AiohttpTransport]] = {
    "own": WireTransport,
    "aiohttp": AiohttpTransport,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Where the built-in engine listens, and the key that it asks for."""

    url: str
    key: str


def build_hook(settings: Settings) -> HttpHook:
    """Build what takes events to webhooks; it is closed by whoever asked for it."""
    return HttpHook(public_only=settings.webhook_urls == "public")


def build_backends(
    *, settings: Settings, engine: Engine | None, clock: Clock, environment: Mapping[str, str] = os.environ
) -> list[tuple[Backend, int | None]]:
    """Build every backend with its window, None where it is to be found: the settings', or else the built-in engine.

    Raises:
        BadSettings: a URL, or an environment variable that should hold a key, is not there.
    """
    entries = settings.backends
    if not entries and engine is not None:
        builtin = BackendSettings(url=engine.url, models=(BUILTIN_MODEL,) if settings.model is None else ())
        return [(_http(builtin, key=engine.key, clock=clock, settings=settings), settings.window or BUILTIN_SLOTS)]
    backends: list[tuple[Backend, int | None]] = []
    for entry in entries:
        try:
            backend = _backend(entry, clock=clock, settings=settings, environment=environment)
        except ValueError as fault:
            raise BadSettings(f"backend: {fault}") from fault
        backends.append((backend, entry.window or settings.window))
    names = [backend.name for backend, _ in backends]
    for name in names:
        if names.count(name) > 1:
            raise BadSettings(f"backend: {name} is given twice")
    return backends


def backend_name(url: str) -> str:
    """Return what a backend with this URL is called, in rows, reasons and metrics."""
    return "echo:" if url.startswith("echo:") else name_of(url)


def _backend(entry: BackendSettings, *, clock: Clock, settings: Settings, environment: Mapping[str, str]) -> Backend:
    backend = _bare_backend(entry, clock=clock, settings=settings, environment=environment)
    return PackingBackend(backend=backend, clock=clock) if settings.pack_embeddings else backend


def _bare_backend(
    entry: BackendSettings, *, clock: Clock, settings: Settings, environment: Mapping[str, str]
) -> Backend:
    if entry.url.startswith("echo:"):
        return EchoBackend.parse(f"{entry.url}#{','.join(entry.models)}", clock=clock)
    key = None
    if entry.key_env is not None:
        key = environment.get(entry.key_env)
        if not key:
            raise ValueError(f"the environment variable {entry.key_env}, which should hold a key, is not set")
    return _http(entry, key=key, clock=clock, settings=settings)


def _http(entry: BackendSettings, *, key: str | None, clock: Clock, settings: Settings) -> HttpBackend:
    make = _TRANSPORTS[settings.transport]
    transport = make(clock=clock, max_reply_bytes=limits_of(settings).max_reply_bytes)
    return HttpBackend(url=entry.url, transport=transport, deadline=entry.timeout, models=entry.models, key=key)


def pace_of(window: int | None, *, polite: bool, alone: bool, connections: int) -> Pace:
    """Return a pace with this window, or one that finds its own within so many connections."""
    if window is not None:
        return Pace(window=window, polite=polite, alone=alone)
    return Pace(window=min(WINDOW, connections), most=min(MOST, connections), polite=polite, alone=alone)


def connections_of(backends: int) -> int:
    """Return how many connections each backend may have: a process has only so many descriptors."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if descriptors == resource.RLIM_INFINITY else max(1, (descriptors - _OTHER_DESCRIPTORS) // backends)


def added_lane(
    entry: Entry,
    *,
    backends: list[tuple[Backend, int | None]],
    lanes: Iterable[Lane],
    settings: Settings,
    alone: bool,
    clock: Clock,
) -> Lane:
    """Return the lane of a backend that the operator has added, and note it among those to be closed at the end.

    It stands beside the present `lanes`: what has been removed takes no connections any more.

    Raises:
        ValueError: It cannot be made in this process, with the reason.
    """
    timeout = {} if entry.timeout is None else {"timeout": entry.timeout}
    given = BackendSettings(
        url=entry.url or "", models=entry.models, key_env=entry.key_env, window=entry.window, **timeout
    )
    backend = _backend(given, clock=clock, settings=settings, environment=os.environ)
    backends.append((backend, entry.window or settings.window))
    window, connections = entry.window or settings.window, connections_of(1 + sum(1 for _ in lanes))
    pace = pace_of(window, polite=settings.polite, alone=alone, connections=connections)
    return Lane(backend=backend, pace=pace)
