"""What a database promises: atomic, durable, serial where it writes, one snapshot where it reads."""

import asyncio
import errno
import sqlite3
import threading
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from batchmill.store.database import Database, DiskFull, SqliteDatabase, Transaction
from batchmill.store.migrate import migrate
from batchmill.store.model import add_models, list_models
from batchmill.store.postgres import PostgresDatabase
from fakeclock import FakeClock
from postgres import Cluster
from store.rows import meanwhile
from volume import fill, small_volume


def add(name: str, tx: Transaction) -> None:
    """Add a row."""
    add_models(tx, names=[name], now=1)


def pragmas(tx: Transaction) -> list[object]:
    """Return journal mode, synchronous and foreign_keys of a SQLite connection."""
    names = ("journal_mode", "synchronous", "foreign_keys")
    return [tx.connection.scalar(text(f"PRAGMA {name}")) for name in names]


@pytest.fixture
async def sqlite(tmp_path: Path, clock: FakeClock) -> SqliteDatabase:
    """A migrated SQLite file."""
    database = SqliteDatabase(path=tmp_path / "rows.sqlite3", clock=clock)
    await database.write(migrate)
    return database


async def test_a_sqlite_commit_outlives_a_power_cut(sqlite: SqliteDatabase) -> None:
    """Every connection, for writing or reading, has WAL, synchronous=FULL (2) and foreign keys in force."""
    assert await sqlite.write(pragmas) == ["wal", 2, 1]
    for seen in await asyncio.gather(*(sqlite.read(pragmas) for _ in range(8))):
        assert seen == ["wal", 2, 1]
    await sqlite.close()


async def test_a_postgres_commit_is_synchronous(cluster: Cluster) -> None:
    """A commit on PostgreSQL waits for the disk, and a lock is waited for 3 s at most."""
    database = PostgresDatabase(url=await cluster.new_database())

    def settings(tx: Transaction) -> list[object]:
        return [tx.connection.scalar(text(f"SHOW {name}")) for name in ("synchronous_commit", "lock_timeout")]

    assert await database.write(settings) == ["on", "3s"]
    await database.close()


async def test_an_exception_rolls_all_back(database: Database) -> None:
    """What a transaction wrote before its fault is not there."""

    def fail(tx: Transaction) -> None:
        add("m", tx)
        raise LookupError

    with pytest.raises(LookupError):
        await database.write(fail)
    assert await database.read(list_models) == []


async def test_a_read_cannot_write(database: Database) -> None:
    """The database itself refuses a statement that writes inside a read, and goes on working."""
    with pytest.raises(DBAPIError, match=r"read-?only"):
        await database.read(lambda tx: add("m", tx))
    await database.write(lambda tx: add("m", tx))
    assert len(await database.read(list_models)) == 1


async def test_a_read_sees_one_snapshot(database: Database) -> None:
    """What is committed in the middle of a read does not show in its later statements."""
    loop = asyncio.get_running_loop()

    def twice(tx: Transaction) -> tuple[int, int]:
        before = len(list_models(tx))
        meanwhile(loop, database.write(lambda inner: add("m", inner)))
        return before, len(list_models(tx))

    assert await database.read(twice) == (0, 0)
    assert len(await database.read(list_models)) == 1


async def test_before_runs_ahead_of_the_transaction(sqlite: SqliteDatabase, tmp_path: Path) -> None:
    """While `before` runs nobody is kept from writing; while the statements run everybody is."""
    locked = []
    other = sqlite3.connect(tmp_path / "rows.sqlite3", timeout=0, isolation_level=None, check_same_thread=False)

    def try_to_write() -> None:
        try:
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
            locked.append(False)
        except sqlite3.OperationalError:
            locked.append(True)

    await sqlite.write(lambda _: try_to_write(), before=try_to_write)
    assert locked == [False, True]
    other.close()
    await sqlite.close()


async def test_a_fault_in_before_writes_nothing(database: Database) -> None:
    """If the blob could not be made durable, the transaction does not begin."""

    def fail() -> None:
        raise OSError("full disk")

    with pytest.raises(OSError, match="full disk"):
        await database.write(lambda tx: add("m", tx), before=fail)
    assert await database.read(list_models) == []


async def test_a_writer_waits_for_another_process(sqlite: SqliteDatabase, tmp_path: Path) -> None:
    """A write that meets another process's transaction succeeds once that has ended."""
    other = sqlite3.connect(tmp_path / "rows.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(sqlite.write(lambda tx: add("m", tx)))
    assert await sqlite.read(list_models) == []  # a reader does not wait
    other.execute("COMMIT")
    other.close()
    await writing
    assert len(await sqlite.read(list_models)) == 1
    await sqlite.close()


async def test_a_cancelled_caller_stops_no_transaction(database: Database) -> None:
    """A transaction whose caller was cancelled still commits, and closing waits for it."""
    began, go_on, written = threading.Event(), threading.Event(), []

    def wait() -> None:
        began.set()
        go_on.wait()

    def statements(tx: Transaction) -> None:
        add("m", tx)
        written.append("m")

    writing = asyncio.create_task(database.write(statements, before=wait))
    await asyncio.to_thread(began.wait)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    closing = asyncio.create_task(database.close())
    go_on.set()
    await closing
    assert written == ["m"]


async def test_closing_twice_does_nothing(database: Database) -> None:
    """A second close is no error."""
    await database.write(lambda tx: add("m", tx))
    await database.close()
    await database.close()


async def test_a_restart_of_postgres_is_survived(cluster: Cluster) -> None:
    """After every connection was cut, the next read and the next write just work."""
    url = await cluster.new_database()
    database = PostgresDatabase(url=url)
    await database.write(lambda tx: add("m", tx))
    await cluster.cut_connections(url)
    assert len(await database.read(list_models)) == 1
    await cluster.cut_connections(url)
    await database.write(lambda tx: add("n", tx))
    await database.close()


async def test_any_path_is_a_path(tmp_path: Path, clock: FakeClock) -> None:
    """A data directory whose name looks like a part of a URL is taken as it is."""
    folder = tmp_path / "a?b#c%20d é"
    folder.mkdir()
    database = SqliteDatabase(path=folder / "rows.sqlite3", clock=clock)
    await database.write(migrate)
    await database.close()
    assert (folder / "rows.sqlite3").is_file()


async def test_two_processes_may_start_at_once(tmp_path: Path, clock: FakeClock) -> None:
    """Two that open and migrate a new SQLite file at the same time both succeed."""
    both = [SqliteDatabase(path=tmp_path / "rows.sqlite3", clock=clock) for _ in range(2)]
    await asyncio.gather(*(database.write(migrate) for database in both))
    for database in both:
        assert await database.read(list_models) == []
        await database.close()


async def test_two_processes_may_migrate_postgres_at_once(cluster: Cluster) -> None:
    """Of two that migrate an empty PostgreSQL at the same time the second waits and finds it done."""
    url = await cluster.new_database(migrated=False)
    both = [PostgresDatabase(url=url) for _ in range(2)]
    await asyncio.gather(*(database.write(migrate) for database in both))
    for database in both:
        assert await database.read(list_models) == []
        await database.close()


async def test_the_lease_clock_of_sqlite_is_the_boot_clock(sqlite: SqliteDatabase, clock: FakeClock) -> None:
    """On SQLite the lease clock follows the boot clock, whatever the wall clock does."""
    clock.uptime, clock.time = 77.5, 0.0
    assert await sqlite.read(lambda tx: tx.connection.scalar(select(tx.lease_now))) == 77.5
    await sqlite.close()


async def test_the_lease_clock_of_postgres_is_its_own_and_runs_on(cluster: Cluster) -> None:
    """On PostgreSQL the lease clock is the server's, and it goes on within a transaction."""
    database = PostgresDatabase(url=await cluster.new_database())

    def twice(tx: Transaction) -> tuple[float, float]:
        seen = [tx.connection.scalar(select(tx.lease_now)) for _ in range(2)]
        return float(seen[0] or 0), float(seen[1] or 0)

    first, second = await database.write(twice)
    assert 1.7e9 < first < second
    await database.close()


async def test_foreign_keys_hold(database: Database) -> None:
    """A row of an organisation that is not there is refused."""
    statement = text(
        "INSERT INTO blob (key, organisation_id, state, bytes, refs, created_at) VALUES ('k', 'x', 'ready', 1, 1, 1)"
    )
    with pytest.raises(DBAPIError, match=r"(?i)foreign key"):
        await database.write(lambda tx: tx.connection.execute(statement))


async def test_a_full_disk_is_no_fault_of_the_database(tmp_path: Path, clock: FakeClock) -> None:
    """SQLite without space says ENOSPC, on whatever write it meets it; all that was committed stays, and it goes on."""
    with small_volume(tmp_path / "volume", mib=8) as folder:
        database = SqliteDatabase(path=folder / "rows.sqlite3", clock=clock)
        await database.write(migrate)
        added = 0

        async def add_rows(count: int) -> None:
            nonlocal added
            for _ in range(count):
                await database.write(partial(add, f"{added:05000}"))
                added += 1

        for _ in range(3):  # at each place where SQLite may find the disk full: its log, its index, its file
            ballast = fill(folder, leave=40 << 10)
            with pytest.raises(DiskFull) as refused:
                await add_rows(100)
            assert refused.value.errno == errno.ENOSPC
            assert len(await database.read(list_models)) == added
            ballast.unlink()
            await add_rows(20)
        assert len(await database.read(list_models)) == added
        await database.close()
