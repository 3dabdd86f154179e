"""A database as the rooms above see it: a read, or one short writing transaction, of synchronous statements.

A statement is a function over a `Transaction`. On SQLite it runs in the one writer thread (or in a reader thread), on
PostgreSQL the same function runs through SQLAlchemy's `run_sync`. Nothing awaits inside a transaction: 5 ms of awaiting
in one took the other process's write p99 from 19 ms to 1 s (design, "SQLite").
"""

import asyncio
import errno
import os
import sqlite3
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Float,
    cast,
    create_engine,
    event,
    extract,
    func,
    literal,
    make_url,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from batchmill.clock import Clock

T = TypeVar("T")

_BUSY_SECONDS = 30.0  # how long a writer waits for the other process's transaction; ours take milliseconds
_BUSY_LOOK_SECONDS = 0.02
_READERS = 4

# SQLITE_FULL: the file or its log cannot grow. SHMSIZE: the index of the log cannot; SQLite calls that an I/O error.
_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})


class DiskFull(OSError):  # noqa: N818 - it states what is so
    """SQLite had no room for a transaction, and nothing of it is written: ENOSPC, as a blob's writer says it."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """What a statement runs in.

    `lease_now` is the present on the lease clock, in seconds: the database's own clock on PostgreSQL, the machine's
    boot clock on SQLite. Leases are judged by it alone; wall time never is.
    """

    connection: Connection
    lease_now: ColumnElement[float]


Statements = Callable[[Transaction], T]


class Database(Protocol):
    """Where the rows are.

    What was begun is carried through although the caller is cancelled: a transaction under way still commits.

    Raises:
        DiskFull: there was no room (SQLite); nothing of the transaction is written.
    """

    async def read(self, statements: Statements[T]) -> T:
        """Run statements on one snapshot; the database refuses any that writes."""
        ...

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """Run statements in one transaction and commit it durably; an exception rolls all of it back.

        `before` is blocking work done right ahead of the transaction, never inside it (a group commit's blob).
        """
        ...

    async def version(self) -> int | None:
        """Return a number that differs once anybody has changed a row; None if the database has no such number."""
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


class PostgresDatabase:
    """PostgreSQL through asyncpg, with every commit synchronous (reliability, finding 3)."""

    def __init__(self, *, url: str) -> None:
        self._engine = create_async_engine(
            make_url(url).set(drivername="postgresql+asyncpg"),
            hide_parameters=True,
            pool_pre_ping=True,  # after a restart of the database the old connections are replaced, not tried
            connect_args={"server_settings": {"synchronous_commit": "on", "lock_timeout": "3s"}},
        )
        self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._lease_now = cast(extract("epoch", func.clock_timestamp()), Float)
        self._under_way: set[asyncio.Future[Any]] = set()

    async def read(self, statements: Statements[T]) -> T:
        """See `Database`."""
        return await self._run(self._transact(self._reader, statements))

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """See `Database`."""

        async def in_order() -> T:
            if before is not None:
                await asyncio.to_thread(before)
            return await self._transact(self._engine, statements)

        return await self._run(in_order())

    async def version(self) -> int | None:
        """See `Database`."""
        return None

    async def close(self) -> None:
        """See `Database`."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        await self._engine.dispose()

    async def _transact(self, engine: AsyncEngine, statements: Statements[T]) -> T:
        async with engine.begin() as connection:
            return await connection.run_sync(
                lambda inner: statements(Transaction(connection=inner, lease_now=self._lease_now))
            )

    async def _run(self, call: Coroutine[Any, Any, T]) -> T:
        running = asyncio.ensure_future(call)
        self._under_way.add(running)
        running.add_done_callback(self._under_way.discard)
        return await asyncio.shield(running)


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
