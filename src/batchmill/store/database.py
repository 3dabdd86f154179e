"""A database as the rooms above see it: a read, or one short writing transaction, of synchronous statements.

A statement is a function over a `Transaction`. On SQLite it runs in the one writer thread (or in a reader thread), on
PostgreSQL the same function runs through SQLAlchemy's `run_sync`. Nothing awaits inside a transaction: 5 ms of awaiting
in one took the other process's write p99 from 19 ms to 1 s (design, "SQLite").
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, Float, cast, create_engine, event, extract, func, literal
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool

from batchmill.clock import Clock

T = TypeVar("T")

_BUSY_SECONDS = 30.0  # how long a writer waits for the other process's transaction; ours take milliseconds
_READERS = 4


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
    """Where the rows are."""

    async def read(self, statements: Statements[T]) -> T:
        """Run statements that only read, on a snapshot of their own."""
        ...

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """Run statements in one transaction and commit it durably; an exception rolls all of it back.

        `before` is blocking work done right ahead of the transaction, never inside it (a group commit's blob).
        """
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
        self._writer = _sqlite_engine(path, size=1, begin="BEGIN IMMEDIATE")
        self._reader = _sqlite_engine(path, size=_READERS, begin="BEGIN")

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

    async def close(self) -> None:
        """See `Database`."""
        for pool in (self._writing, self._reading):
            await asyncio.to_thread(pool.shutdown)
        self._writer.dispose()
        self._reader.dispose()

    def _transact(self, engine: Engine, statements: Statements[T]) -> T:
        with engine.begin() as connection:
            return statements(Transaction(connection=connection, lease_now=literal(self._clock.boot(), Float)))

    @staticmethod
    async def _run(pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        # Shielded: a cancelled caller must not make anyone believe that a transaction under way did not happen.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(pool, call))


class PostgresDatabase:
    """PostgreSQL through asyncpg, with every commit synchronous (reliability, finding 3)."""

    def __init__(self, *, url: str) -> None:
        self._engine = create_async_engine(
            url, connect_args={"server_settings": {"synchronous_commit": "on", "lock_timeout": "3s"}}
        )
        self._lease_now = cast(extract("epoch", func.clock_timestamp()), Float)

    async def read(self, statements: Statements[T]) -> T:
        """See `Database`."""
        return await self._transact(statements)

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """See `Database`."""
        if before is not None:
            await asyncio.to_thread(before)
        return await self._transact(statements)

    async def close(self) -> None:
        """See `Database`."""
        await self._engine.dispose()

    async def _transact(self, statements: Statements[T]) -> T:
        async with self._engine.begin() as connection:
            return await connection.run_sync(
                lambda inner: statements(Transaction(connection=inner, lease_now=self._lease_now))
            )


def _sqlite_engine(path: Path, *, size: int, begin: str) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=0,
        connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
    )

    def on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own connection
        connection.isolation_level = None  # the driver begins nothing by itself: `begin` below does
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
    return engine
