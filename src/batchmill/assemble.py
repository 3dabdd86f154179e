"""The composition root: the only file that names a concrete database, disk or backend."""

import os
import random
import resource
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from batchmill.api.app import create_app
from batchmill.api.gate import App
from batchmill.api.metrics import MetricsApp
from batchmill.backends.aiohttp_transport import AiohttpTransport
from batchmill.backends.backend import Backend
from batchmill.backends.builtin import BUILTIN_KV_TOKENS, BUILTIN_MODEL, BUILTIN_SLOTS
from batchmill.backends.echo import EchoBackend
from batchmill.backends.http import HttpBackend, name_of
from batchmill.backends.packing import PackingBackend
from batchmill.backends.router import Router
from batchmill.backends.wire import WireTransport
from batchmill.blobs.blobs import Blobs
from batchmill.blobs.disk import DiskBlobs
from batchmill.blobs.in_place import InPlaceBlobs, OutsideFile
from batchmill.blobs.space import Space
from batchmill.clock import Clock, SystemClock
from batchmill.engine.feed import Feed
from batchmill.engine.finalizer import Finalizer
from batchmill.engine.gauging import Gauging
from batchmill.engine.group import GroupBounds
from batchmill.engine.lanes import Lane, Lanes
from batchmill.engine.lease import Lease
from batchmill.engine.loop import Bell, Doorbell
from batchmill.engine.roster import Roster
from batchmill.engine.runner import Runner
from batchmill.engine.scout import Scout
from batchmill.engine.sender import Sender
from batchmill.engine.sharing import Sharing
from batchmill.engine.sweeper import Sweeper
from batchmill.engine.validator import Validator
from batchmill.engine.worker import Worker
from batchmill.ledger.ledger import Ledger
from batchmill.schedule.order import KV_TOKENS
from batchmill.schedule.pace import MOST, WINDOW, Pace
from batchmill.schedule.planner import Ordering
from batchmill.settings import BackendSettings, BadSettings, Settings, limits_over
from batchmill.spec.ids import mint_id
from batchmill.spec.limits import PROFILES, Limits
from batchmill.store.database import Database, SqliteDatabase
from batchmill.store.roster import Entry
from batchmill.telemetry import Metrics

_LOOK_SECONDS = 0.25  # how often somebody looks whether rows have changed, or a backend wants a probe
_IDLE_SECONDS = 5.0  # how long a loop that found nothing waits for the bell
_SWEEP_SECONDS = 1.0
BUCKET_BOUNDS = GroupBounds(wait=1.0, gap=0.25)  # a bucket takes its time for a commit, and money
_OTHER_DESCRIPTORS = 128  # of a process, for files, rows and logs
_GAUGE_SECONDS = 1.0
_PATIENCE = 10.0  # seconds that a database which is away is waited for
_SHARE_SECONDS = 1.0  # how often workers tell each other what they have in flight
_ROSTER_SECONDS = 1.0
_TRANSPORTS: dict[str, type[WireTransport] | type[AiohttpTransport]] = {
    "own": WireTransport,
    "aiohttp": AiohttpTransport,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Where the built-in engine listens, and the key that it asks for."""

    url: str
    key: str


def rows_path(settings: Settings) -> Path:
    """Return the file that an embedded data directory keeps its rows in."""
    return settings.data / "batchmill.sqlite3"


class Storage:
    """The rows and the bytes: those of one data directory, or a server's and a bucket's.

    With `metrics`, fsyncs are timed; `role` names the process to the database, which is waited for as long as
    `patience` (seconds) lasts.

    Raises:
        BadSettings: what the settings ask for is not installed, or makes no sense.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock,
        metrics: Metrics | None = None,
        role: str = "command",
        patience: float = _PATIENCE,
    ) -> None:
        self._disk: DiskBlobs | None = None
        self.database: Database = (
            SqliteDatabase(path=rows_path(settings), clock=clock)
            if settings.database is None
            else _postgres(settings.database, settings=settings, role=role, patience=patience)
        )
        if settings.blobs is None:
            fsync = os.fsync if metrics is None else partial(_timed_fsync, metrics)
            self._disk = DiskBlobs(folder=settings.data / "blobs", fsync=fsync)
            self.blobs: Blobs = self._disk
        else:
            self.blobs = _bucket(settings.blobs, scratch=settings.data / "scratch")
        self.room = Space(folder=settings.data)

    @property
    def disk(self) -> DiskBlobs:
        """The blobs as files of an embedded data directory."""
        if self._disk is None:
            raise LookupError("these bytes are in a bucket")
        return self._disk

    def read_in_place(self, *, key: str, file: OutsideFile) -> None:
        """Let a key stand for a file where it lies (`batchmill run`'s input)."""
        self.blobs = InPlaceBlobs(key=key, file=file, blobs=self.disk)


def _timed_fsync(metrics: Metrics, descriptor: int) -> None:
    with metrics.fsync_seconds.time():
        os.fsync(descriptor)


def _postgres(url: str, *, settings: Settings, role: str, patience: float) -> Database:
    try:
        from batchmill.store.dsn import BadDatabaseUrl  # noqa: PLC0415 - an extra, which SQLite does not need
        from batchmill.store.postgres import PostgresDatabase  # noqa: PLC0415 - the same
    except ModuleNotFoundError as missing:
        raise BadSettings("database: PostgreSQL needs an extra: pip install 'batchmill[postgres]'") from missing
    try:
        return PostgresDatabase(
            url=url,
            role=role,
            pool_size=settings.database_pool,
            pooled=settings.database_pooled,
            patience=patience,
        )
    except BadDatabaseUrl as fault:
        raise BadSettings(f"database: {fault}") from fault


def _bucket(url: str, *, scratch: Path) -> Blobs:
    try:
        from batchmill.blobs.bucket import BucketBlobs  # noqa: PLC0415 - an extra, which a disk does not need
    except ModuleNotFoundError as missing:
        raise BadSettings("blobs: a bucket needs an extra: pip install 'batchmill[bucket]'") from missing
    try:
        return BucketBlobs(url=url, scratch=scratch)
    except (ValueError, OSError) as fault:
        raise BadSettings(f"blobs: {fault}") from fault


def limits_of(settings: Settings) -> Limits:
    """Return the limits of the chosen profile, with those that the settings override.

    Raises:
        BadSettings: They do not go together with this profile.
    """
    try:
        return limits_over(PROFILES[settings.limits], {"media_urls": settings.media_urls} | settings.limits_override)
    except ValueError as fault:
        raise BadSettings(str(fault)) from fault


def _retention(settings: Settings) -> int | None:
    return None if settings.retention is None else int(settings.retention)


def build_api(*, settings: Settings, storage: Storage, clock: Clock, broken: Callable[[], None]) -> App:
    """Build the API; `broken` is called when the disk fails beneath it."""
    return create_app(
        database=storage.database,
        blobs=storage.blobs,
        room=storage.room,
        clock=clock,
        limits=limits_of(settings),
        version=version("batchmill"),
        broken=broken,
        retention=_retention(settings),
        catalogue=settings.catalogue,
    )


def build_metrics(*, metrics: Metrics, storage: Storage, clock: Clock) -> App:
    """Build what answers `/metrics`."""
    return MetricsApp(metrics=metrics, database=storage.database, clock=clock)


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


def _pace(window: int | None, *, polite: bool, alone: bool, connections: int) -> Pace:
    """Return a pace with this window, or one that finds its own within so many connections."""
    if window is not None:
        return Pace(window=window, polite=polite, alone=alone)
    return Pace(window=min(WINDOW, connections), most=min(MOST, connections), polite=polite, alone=alone)


def connections_of(backends: int) -> int:
    """Return how many connections each backend may have: a process has only so many descriptors."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if descriptors == resource.RLIM_INFINITY else max(1, (descriptors - _OTHER_DESCRIPTORS) // backends)


def _added(
    entry: Entry, *, backends: list[tuple[Backend, int | None]], settings: Settings, alone: bool, clock: Clock
) -> Lane:
    """Return the lane of a backend that the operator has added, and note it among those to be closed at the end.

    Raises:
        ValueError: It cannot be made in this process, with the reason.
    """
    timeout = {} if entry.timeout is None else {"timeout": entry.timeout}
    given = BackendSettings(
        url=entry.url or "", models=entry.models, key_env=entry.key_env, window=entry.window, **timeout
    )
    backend = _backend(given, clock=clock, settings=settings, environment=os.environ)
    backends.append((backend, entry.window or settings.window))
    window, connections = entry.window or settings.window, connections_of(len(backends))
    pace = _pace(window, polite=settings.polite, alone=alone, connections=connections)
    return Lane(backend=backend, pace=pace)


def build_worker(
    *,
    settings: Settings,
    storage: Storage,
    backends: list[tuple[Backend, int | None]],
    clock: Clock,
    alone: bool,
    metrics: Metrics,
) -> Worker:
    """Build a worker with its loops; `alone` as in `Worker`.

    What the operator adds while it runs is added to `backends`: whoever closes those closes it, too.
    """
    database, blobs, room = storage.database, storage.blobs, storage.room
    worker_id = mint_id("worker", clock.now())
    here: dict[str, Any] = {"database": database, "clock": clock, "worker_id": worker_id}
    mine = here | {"lease": settings.lease}
    lease = Lease(clock=clock, seconds=settings.lease)
    connections = connections_of(max(1, len(backends)))
    given = [
        Lane(backend=backend, pace=_pace(window, polite=settings.polite, alone=alone, connections=connections))
        for backend, window in backends
    ]
    once = settings.on_unknown_outcome == "fail"
    router = Router([lane.backend for lane in given])
    lanes, feed = Lanes(lanes=given, router=router), Feed()
    sharing = Sharing(lanes=lanes, pending=feed.pending, **here)
    make_lane = partial(_added, backends=backends, settings=settings, alone=alone, clock=clock)
    validate, run, finalize, scout, share = (Bell(clock=clock) for _ in range(5))
    runner = Runner(
        ledger=Ledger(blobs=blobs, metrics=metrics, **mine),
        database=database,
        blobs=blobs,
        room=storage.room,
        lanes=lanes,
        feed=feed,
        sender=Sender(
            clock=clock,
            draw=random.random,
            once=once,
            unwell=scout,
            metrics=metrics,
            catalogue=settings.catalogue,
        ),
        lease=lease,
        clock=clock,
        bell=run,
        bounds=GroupBounds() if settings.blobs is None else BUCKET_BOUNDS,
        metrics=metrics,
        once=once,
        coalesce=settings.coalesce,
    )
    return Worker(
        database=database,
        clock=clock,
        worker_id=worker_id,
        place=f"{socket.gethostname()}:{os.getpid()}",
        lease=lease,
        alone=alone,
        metrics=metrics,
        runner=runner,
        loops=(
            (
                Validator(
                    blobs=blobs,
                    room=room,
                    limits=limits_of(settings),
                    accepted=run,
                    catalogue=settings.catalogue,
                    ordering=Ordering(
                        backends=len(backends),
                        kv_tokens=KV_TOKENS if settings.backends else BUILTIN_KV_TOKENS,
                        in_file_order=settings.order == "file",
                        coalesce=settings.coalesce,
                    ),
                    **mine,
                ),
                validate,
                _IDLE_SECONDS,
            ),
            (
                Finalizer(blobs=blobs, room=room, retention=_retention(settings), **mine),
                finalize,
                _IDLE_SECONDS,
            ),
            (
                Sweeper(database=database, blobs=blobs, room=room, router=router, clock=clock, worker_id=worker_id),
                Bell(clock=clock),
                _SWEEP_SECONDS,
            ),
            (
                Scout(lanes=lanes, router=router, learned=(run, validate, share), metrics=metrics, **here),
                scout,
                _LOOK_SECONDS,
            ),
            (Gauging(lanes=lanes, clock=clock), Bell(clock=clock), _GAUGE_SECONDS),
            *([] if alone else [(sharing, share, _SHARE_SECONDS)]),
            (
                Roster(lanes=lanes, feed=feed, make_lane=make_lane, unknown=scout, metrics=metrics, **here),
                Bell(clock=clock),
                _ROSTER_SECONDS,
            ),
            (
                Doorbell(database=database, bells=(validate, run, finalize)),
                Bell(clock=clock),
                _LOOK_SECONDS,
            ),
        ),
    )


def build_clock() -> Clock:
    """Return the machine's clock."""
    return SystemClock()
