"""A database as the rooms above see it: a read, or one short writing transaction, of synchronous statements; SQLite.

A statement is a function over a `Transaction`. On SQLite it runs in the one writer thread (or in a reader thread), on
PostgreSQL the same function runs through SQLAlchemy's `run_sync`. Nothing awaits inside a transaction: 5 ms of awaiting
in one took the other process's write p99 from 19 ms to 1 s (design, "SQLite").
"""

import asyncio
import errno
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Float,
    Table,
    create_engine,
    event,
    literal,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError

from batchmill.clock import Clock

T = TypeVar("T")

_BUSY_SECONDS = 30.0  # how long a writer waits for the other process's transaction; ours take milliseconds
_BUSY_LOOK_SECONDS = 0.02
_READERS = 4

# SQLITE_FULL: the file or its log cannot grow. SHMSIZE: the index of the log cannot; SQLite calls that an I/O error.
_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})


class DatabaseAway(Exception):  # noqa: N818 - it states what is so
    """The database did not answer for as long as it is waited for, or lets nobody in; `str` says why, without a secret.

    Whether a transaction that was under way is written nobody knows: it is as if the process had died then.
    """


class DiskFull(OSError):  # noqa: N818 - it states what is so
    """The database had no room for a transaction, and nothing of it is written: ENOSPC, as a blob's writer says it."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """What a statement runs in.

    `lease_now` is the present on the lease clock, in seconds: the database's own clock on PostgreSQL, the machine's
    boot clock on SQLite. Leases are judged by it alone; wall time never is.
    `ring` says that the transaction moves something that a loop waits for: once it is committed, `Database.version`
    differs for everybody. (SQLite's version tells of every change by itself.)
    `take_time` lets the transaction take as long as it needs: a migration, not what others wait for.
    """

    connection: Connection
    lease_now: ColumnElement[float]
    ring: Callable[[], None] = nothing
    take_time: Callable[[], None] = nothing

    def insert(self, table: Table) -> postgresql.Insert | sqlite.Insert:
        """Return an insert that can say what becomes of a row that is there already: `on_conflict_do_…`."""
        if self.connection.dialect.name == "postgresql":
            return postgresql.insert(table)
        return sqlite.insert(table)


Statements = Callable[[Transaction], T]


class Database(Protocol):
    """Where the rows are.

    What was begun is carried through although the caller is cancelled: a transaction under way still commits.
    Statements may run several times (PostgreSQL: a connection was lost, others were in the way) before one run of them
    counts, so they change nothing but rows, and what they return is that run's. What they raise is raised.

    Raises:
        DatabaseAway: it was waited for in vain (PostgreSQL).
        DiskFull: there was no room; nothing of the transaction is written.
    """

    async def read(self, statements: Statements[T]) -> T:
        """Run statements on one snapshot; the database refuses any that writes."""
        ...

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """Run statements in one transaction and commit it durably; an exception rolls all of it back.

        `before` is blocking work done once, right ahead of the transaction, never inside it (a group commit's blob).
        """
        ...

    async def version(self) -> int | None:
        """Return a number that differs once anybody has moved something; None if the database has no such number."""
        ...

    async def close(self) -> None:
        """Close all connections; a second call does nothing."""
        ...


class SqliteDatabase:
    """SQLite in WAL mode with `synchronous=FULL`: what is committed outlives a power cut (reliability, finding 2)."""

    def __init__(self, *, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite-writer")
        self._reading = ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="sqlite-reader")
        self._writer = _sqlite_engine(path, size=1, writes=True)
        self._reader = _sqlite_engine(path, size=_READERS, writes=False)
        self._path = path
        self._watcher: sqlite3.Connection | None = None  # the version means something on one connection only

    async def read(self, statements: Statements[T]) -> T:
        """See `Database`."""
        return await self._run(self._reading, lambda: self._transact(self._reader, statements))

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """See `Database`."""

        def in_writer() -> T:
            if before is not None:
                before()
            return self._transact(self._writer, statements)

        return await self._run(self._writing, in_writer)

    async def version(self) -> int | None:
        """See `Database`. It costs a fraction of a read; one caller at a time."""
        return await self._run(self._reading, self._look)

    async def close(self) -> None:
        """See `Database`."""
        for pool in (self._writing, self._reading):
            await asyncio.to_thread(pool.shutdown)
        self._writer.dispose()
        self._reader.dispose()
        if self._watcher is not None:
            self._watcher.close()

    def _look(self) -> int:
        if self._watcher is None:
            self._watcher = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, check_same_thread=False)
        (version,) = self._watcher.execute("PRAGMA data_version").fetchone()
        return int(version)

    def _transact(self, engine: Engine, statements: Statements[T]) -> T:
        try:
            with engine.begin() as connection:
                return statements(Transaction(connection=connection, lease_now=literal(self._clock.boot(), Float)))
        except OperationalError as fault:
            if getattr(fault.orig, "sqlite_errorcode", None) in _FULL:
                raise DiskFull from fault
            raise

    @staticmethod
    async def _run(pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(pool, call))


def _sqlite_engine(path: Path, *, size: int, writes: bool) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        pool_size=size,
        max_overflow=0,
        hide_parameters=True,  # filenames and metadata are not for logs
        connect_args={"timeout": _BUSY_SECONDS},
    )

    def on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself: `on_begin` does
        mode = _enter_wal(connection)
        if mode != "wal":
            raise sqlite3.OperationalError(f"{path}: this filesystem gives SQLite no write-ahead log, only {mode!r}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA query_only={'OFF' if writes else 'ON'}")

    def on_begin(connection: Connection) -> None:
        # A deferred transaction that reads and then writes fails at once, whatever the busy timeout.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
    return engine


def _enter_wal(connection: sqlite3.Connection) -> str:
    """Switch to the write-ahead log and return the mode. SQLite does not wait for another's switch, so this does."""
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as fault:
            if fault.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(_BUSY_LOOK_SECONDS)
        else:
            return str(mode)
