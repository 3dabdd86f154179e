"""The rows and the bytes that the settings name: the only file that knows which database and which disk or bucket."""

import os
from functools import cached_property, partial
from pathlib import Path

from batchmill.blobs.blobs import Blobs
from batchmill.blobs.disk import DiskBlobs
from batchmill.blobs.in_place import InPlaceBlobs, OutsideFile
from batchmill.blobs.space import Space
from batchmill.clock import Clock, SystemClock
from batchmill.settings import BadSettings, Settings
from batchmill.store.database import Database, SqliteDatabase
from batchmill.telemetry import Metrics

_PATIENCE = 10.0  # seconds that a database which is away is waited for


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
        self._settings, self._metrics = settings, metrics
        self.database: Database = (
            SqliteDatabase(path=rows_path(settings), clock=clock)
            if settings.database is None
            else _postgres(settings.database, settings=settings, role=role, patience=patience)
        )
        self.room = Space(folder=settings.data)

    @cached_property
    def blobs(self) -> Blobs:
        """The bytes; made when they are first asked for, since many a command needs the rows alone."""
        if self._settings.blobs is None:
            return self.disk
        return _bucket(self._settings.blobs, scratch=self._settings.data / "scratch")

    @cached_property
    def disk(self) -> DiskBlobs:
        """The blobs as files of a data directory."""
        if self._settings.blobs is not None:
            raise LookupError("these bytes are in a bucket")
        fsync = os.fsync if self._metrics is None else partial(_timed_fsync, self._metrics)
        return DiskBlobs(folder=self._settings.data / "blobs", fsync=fsync)

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


def build_clock() -> Clock:
    """Return the machine's clock."""
    return SystemClock()
