"""PostgreSQL through asyncpg: commits are synchronous, their outcome is known, and a server that is away is waited for.

Each writing transaction begins with one statement that sets what the transaction needs, for itself alone, and names it:
so it is the same behind a pooler that gives every transaction another session. By its id and its name the outcome of a
commit whose answer was lost is asked for afterwards.
"""

import asyncio
import os
import random
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import asyncpg
from sqlalchemy import ColumnElement, Connection, Float, cast, extract, func, literal
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from batchmill.clock import Clock
from batchmill.store.database import DatabaseAway, Statements, Transaction, nothing
from batchmill.store.dsn import read_dsn
from batchmill.store.listener import CHANNEL, Listener
from batchmill.store.sqlstate import CLIENT_FAULTS, Again, Collision, Standby, meaning

T = TypeVar("T")

# Of the server (reliability, 4.5). Its own answer to silence is needed where a client dies, ours where it does.
_SESSION = MappingProxyType(
    {
        "synchronous_commit": "on",
        "lock_timeout": "3s",
        "statement_timeout": "30s",
        "idle_in_transaction_session_timeout": "10s",
    }
)
_TCP = MappingProxyType({"tcp_user_timeout": "5s", "tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2"})
_SET = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _SESSION.items())
_OPEN_UNNAMED = f"SELECT pg_current_xact_id()::text, {_SET}"
_NAME = "INSERT INTO transaction_name VALUES ($1, extract(epoch FROM clock_timestamp()))"
_OPEN_WRITE = f"WITH said AS ({_NAME}) {_OPEN_UNNAMED}"
_NAMED = "SELECT 1 FROM transaction_name WHERE name = $1"
_HAS_NAMES = "SELECT to_regclass('transaction_name') IS NOT NULL"
_OPEN_READ = f"SELECT {_SET}"
# A standby may not have heard of it yet.
_OUTCOME = "SELECT CASE WHEN pg_is_in_recovery() THEN 'in progress' ELSE pg_xact_status('{xid}'::xid8) END"
_RING = f"SELECT pg_notify('{CHANNEL}', '')"

_CONNECT_SECONDS = 5.0
# After five seconds without a sign of a peer's kernel ours gives a connection up (Linux).
_KEEP = MappingProxyType(
    {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 3, socket.TCP_USER_TIMEOUT: 5000}
)
_FUTURE = "22023"  # of an id that was never given: a failover has lost its transaction
_RECYCLE_SECONDS = 1800  # a pool follows a name that has moved to another machine
_STATEMENTS = 500  # prepared ones that a connection keeps; each number of values of an IN is one
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 1.0
_COLLISIONS = 3  # that many in one write were no race


@dataclass(frozen=True, slots=True, kw_only=True)
class _Doubt(Generic[T]):
    """A transaction whose COMMIT was sent, and what its statements returned."""

    xid: int
    name: str | None
    result: T


class PostgresDatabase:
    """PostgreSQL 14 or newer. Writes are READ COMMITTED, reads one REPEATABLE READ snapshot.

    A failover must not lose commits (a synchronous standby): what a client was told is gone then.

    Args:
        url: As `read_dsn` takes it.
        role: What this process is, for whoever looks at `pg_stat_activity`.
        pool_size: The most connections at a time, beside one that listens.
        patience: Seconds that a read or a write may take, with all its tries; then DatabaseAway is raised.
        lease_clock: What judges leases; None for the server's own clock, the one that all processes share.
        pooled: A pooler in transaction mode (pgbouncer) stands before the server: nothing is kept in a session.

    Raises:
        BadDatabaseUrl: as `read_dsn`.
    """

    def __init__(
        self,
        *,
        url: str,
        role: str = "",
        pool_size: int = 8,
        patience: float = 10.0,
        pooled: bool = False,
        lease_clock: Clock | None = None,
    ) -> None:
        name = f"batchmill {role}".rstrip()
        session = {} if pooled else {**_SESSION, **_TCP}  # a pooler refuses what it does not track
        arguments = read_dsn(url)

        async def connect() -> asyncpg.Connection:
            return await asyncpg.connect(
                **arguments,
                timeout=min(_CONNECT_SECONDS, patience),
                statement_cache_size=0 if pooled else _STATEMENTS,
                server_settings={"application_name": name, **session},
                connection_class=_KeptConnection,
            )

        self._engine = create_async_engine(
            "postgresql+asyncpg://",  # where to and with which password only `connect` knows
            hide_parameters=True,
            pool_size=pool_size,
            max_overflow=0,
            pool_use_lifo=True,
            pool_recycle=_RECYCLE_SECONDS,
            connect_args={
                "async_creator_fn": connect,
                "prepared_statement_cache_size": 0 if pooled else _STATEMENTS,
                "prepared_statement_name_func": (lambda: "") if pooled else None,
            },
        )
        self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._lease_clock = lease_clock
        self._has_names = False
        self._free = asyncio.Semaphore(pool_size)
        self._patience = patience
        self._pooled = pooled
        self._listener = Listener(connect=connect)
        self._under_way: set[asyncio.Future[Any]] = set()

    async def read(self, statements: Statements[T]) -> T:
        """See `Database`."""

        async def attempt(until: float) -> T:
            async with self._connection(self._reader, until) as (connection, take_time):
                if self._pooled:
                    await connection.exec_driver_sql(_OPEN_READ)
                return await connection.run_sync(lambda inner: statements(self._transaction(inner, take_time)))

        return await self._run(self._persist(attempt, writes=False))

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """See `Database`."""
        doubt: _Doubt[T] | None = None

        async def attempt(until: float) -> T:
            nonlocal doubt
            if doubt is not None and await self._is_committed(doubt, until):
                return doubt.result
            doubt, bell = None, _Bell()
            async with self._connection(self._engine, until) as (connection, take_time):
                xid, name = await self._open(connection)
                result = await connection.run_sync(
                    lambda inner: statements(self._transaction(inner, take_time, bell.ring))
                )
                if bell.rung:
                    await connection.exec_driver_sql(_RING)
                doubt = _Doubt(xid=xid, name=name, result=result)  # whatever happens from here on
                await connection.commit()
            return result

        async def in_order() -> T:
            if before is not None:
                await asyncio.to_thread(before)
            return await self._persist(attempt, writes=True)

        return await self._run(in_order())

    async def version(self) -> int | None:
        """See `Database`."""
        if not self._pooled:
            self._listener.start()
        return self._listener.version()

    async def close(self) -> None:
        """See `Database`."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        await self._listener.close()
        await self._engine.dispose()

    async def _persist(self, attempt: Callable[[float], Awaitable[T]], *, writes: bool) -> T:
        """Try until it is done, or the patience is over."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        pause, collisions = _PAUSE_SECONDS, 0
        while True:
            try:
                return await attempt(until)
            except (Again, DBAPIError) as fault:
                means = fault if isinstance(fault, Again) else meaning(fault, writes=writes)
                collisions += isinstance(means, Collision)
                if collisions > _COLLISIONS or (means is fault and not isinstance(fault, Again)):
                    raise
                if not isinstance(means, Again):
                    raise means from fault
                if loop.time() + pause >= until:
                    raise DatabaseAway(f"{means} (tried for {self._patience:g} s)") from fault
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - so that two do not meet again
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _open(self, connection: AsyncConnection) -> tuple[int, str | None]:
        """Begin a writing transaction; return its id, and its name, None where the tables are not made yet."""
        if not self._has_names:
            self._has_names = bool((await connection.exec_driver_sql(_HAS_NAMES)).scalar_one())
        name = secrets.token_hex(16) if self._has_names else None
        opened = (
            connection.exec_driver_sql(_OPEN_UNNAMED)
            if name is None
            else connection.exec_driver_sql(_OPEN_WRITE, (name,))
        )
        return int((await opened).scalar_one()), name

    async def _is_committed(self, doubt: _Doubt[T], until: float) -> bool:
        """Say what became of a transaction whose COMMIT was sent and not answered.

        Its id alone does not say: after a crash the server gives the ids of transactions that were lost to others. So
        one that is said to be committed must have left its name, which is looked for in a snapshot of after that.
        """
        async with self._connection(self._reader, until) as (connection, _):
            try:
                status = (await connection.exec_driver_sql(_OUTCOME.format(xid=doubt.xid))).scalar_one()
            except DBAPIError as fault:
                if getattr(fault.orig, "sqlstate", None) == _FUTURE:
                    return False
                raise
        if status == "in progress":
            raise Again("the outcome of a commit is not known yet")
        if status != "committed" or doubt.name is None:
            return bool(status == "committed")
        async with self._connection(self._reader, until) as (connection, _):
            return (await connection.exec_driver_sql(_NAMED, (doubt.name,))).first() is not None

    @asynccontextmanager
    async def _connection(
        self, engine: AsyncEngine, until: float
    ) -> AsyncIterator[tuple[AsyncConnection, Callable[[], None]]]:
        """Hold a connection, which is cut when the time is up, unless the second of the pair was called before.

        A server that was stopped never answers, and the kernel in front of it acknowledges all the same.
        """
        try:
            async with asyncio.timeout_at(until):
                await self._free.acquire()
        except TimeoutError as late:
            raise Again("all connections are in use") from late
        try:
            connection = await self._connect(engine)
            driver: asyncpg.Connection = (await connection.get_raw_connection()).driver_connection
            cut = asyncio.get_running_loop().call_at(until, driver.terminate)
            try:
                yield connection, cut.cancel
            except Exception as fault:
                follows = isinstance(meaning(fault, writes=engine is self._engine), Standby)
                if driver.is_closed() or follows:
                    await connection.invalidate()
                    if isinstance(fault, CLIENT_FAULTS):
                        raise Again(str(fault)) from fault
                raise
            finally:
                await connection.close()
                cut.cancel()
        finally:
            self._free.release()

    @staticmethod
    async def _connect(engine: AsyncEngine) -> AsyncConnection:
        try:
            return await engine.connect()
        except (DBAPIError, *CLIENT_FAULTS) as fault:
            raise meaning(fault, connecting=True) from fault

    def _transaction(
        self, connection: Connection, take_time: Callable[[], None], ring: Callable[[], None] = nothing
    ) -> Transaction:
        clock = self._lease_clock
        now: ColumnElement[float] = (
            cast(extract("epoch", func.clock_timestamp()), Float) if clock is None else literal(clock.boot(), Float)
        )
        return Transaction(connection=connection, lease_now=now, ring=ring, take_time=take_time)

    async def _run(self, call: Coroutine[Any, Any, T]) -> T:
        running = asyncio.ensure_future(call)
        self._under_way.add(running)
        running.add_done_callback(self._under_way.discard)
        return await asyncio.shield(running)


class _Bell:
    """Whether a transaction moves something that a loop waits for."""

    def __init__(self) -> None:
        self.rung = False

    def ring(self) -> None:
        """Say so."""
        self.rung = True


class _KeptConnection(asyncpg.Connection):  # type: ignore[misc] # a package without annotations
    """A connection that ends by itself when its peer's machine has gone."""

    def __init__(self, protocol: Any, transport: asyncio.Transport, *rest: Any) -> None:  # noqa: ANN401 - asyncpg's own
        super().__init__(protocol, transport, *rest)
        peer = transport.get_extra_info("socket")
        with socket.socket(fileno=os.dup(peer.fileno())) as own:  # uvloop's stand-in takes no options
            if own.family != socket.AF_UNIX:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _KEEP.items():
                    own.setsockopt(socket.IPPROTO_TCP, option, value)
