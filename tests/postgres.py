"""A real PostgreSQL for the tests, and the fixture that runs one suite on SQLite and on PostgreSQL."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from batchmill.store.database import Database, SqliteDatabase
from batchmill.store.migrate import migrate
from batchmill.store.postgres import PostgresDatabase
from batchmill.store.tables import metadata
from fakeclock import FakeClock

_READY = "ready to accept connections"


class Cluster:
    """One PostgreSQL server on a socket and a free port of 127.0.0.1, with as many databases as are asked for.

    Raises:
        RuntimeError: PostgreSQL is not installed, or does not start.
    """

    def __init__(self) -> None:
        self._programs = _find_programs()
        self._folder = Path(tempfile.mkdtemp(prefix="batchmill-postgres-"))
        self._as_user = self._give_folder_away()
        self._numbers = count()
        self._clean: list[str] = []
        try:
            self._port = _free_port()
            self._initialise()
            self._server = self._start()
        except BaseException:
            shutil.rmtree(self._folder)
            raise

    def stop(self) -> None:
        """End the server, whatever is still connected, and remove its files."""
        self._server.send_signal(signal.SIGINT)  # a fast shutdown: connections are cut
        self._server.wait()
        self._draining.join()
        shutil.rmtree(self._folder)

    async def new_database(self, *, migrated: bool = True) -> str:
        """Make a database, empty or with all tables and no row, and return its URL."""
        if not migrated:
            name = f"test{next(self._numbers)}"
            await self._administer(f"CREATE DATABASE {name}")
            return f"postgresql://batchmill@127.0.0.1:{self._port}/{name}"
        if self._clean:
            return self._clean.pop()
        url = await self.new_database(migrated=False)
        database = PostgresDatabase(url=url)
        await database.write(migrate)
        await database.close()
        return url

    async def give_back(self, url: str) -> None:
        """Empty the tables of a database, for the next test: three times as quick as a new one."""
        rows = [f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables)]  # noqa: S608 - our own tables
        await self._administer("; ".join(rows), name=url.rpartition("/")[2])
        self._clean.append(url)

    async def cut_connections(self, url: str) -> None:
        """End every connection to a database, as a restart of the server would."""
        name = url.rpartition("/")[2]
        await self._administer(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608 - our own name

    async def _administer(self, statement: str, *, name: str = "postgres") -> None:
        connection = await asyncpg.connect(host=str(self._folder), port=self._port, user="batchmill", database=name)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _give_folder_away(self) -> list[str]:
        """Return what a command is to begin with; PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            return ["setpriv", "--pdeathsig", "KILL"]
        user = _unprivileged_user()
        os.chown(self._folder, user.pw_uid, user.pw_gid)
        return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--pdeathsig", "KILL"]

    def _initialise(self) -> None:
        command = [str(self._programs / "initdb"), "--username=batchmill", "--auth=trust", "--no-sync"]
        command += ["--encoding=UTF8", "--locale=C.UTF-8", "--lc-messages=C", str(self._folder / "data")]
        done = subprocess.run([*self._as_user, *command], capture_output=True, text=True, check=False, cwd="/")
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stderr}")

    def _start(self) -> "subprocess.Popen[str]":
        """Start the server and return once it accepts connections; it dies with this process."""
        command = [str(self._programs / "postgres"), "-D", str(self._folder / "data"), "-k", str(self._folder)]
        command += ["-h", "127.0.0.1", "-p", str(self._port), "-c", "fsync=off"]  # no test cuts the power
        server = subprocess.Popen([*self._as_user, *command], stderr=subprocess.PIPE, text=True, cwd="/")
        assert server.stderr is not None
        told = []
        for line in server.stderr:
            told.append(line)
            if _READY in line:
                break
        else:
            server.wait()
            server.stderr.close()
            raise RuntimeError(f"PostgreSQL did not start: {''.join(told)}")
        self._draining = threading.Thread(target=_drain, args=(server,))
        self._draining.start()
        return server


def _drain(server: "subprocess.Popen[str]") -> None:
    assert server.stderr is not None
    with server.stderr:
        for _ in server.stderr:
            pass  # what it logs; a full pipe would stop it


def _find_programs() -> Path:
    """Return the folder of the newest PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        raise RuntimeError("These tests need a real PostgreSQL: install the Debian package `postgresql`.")
    return (found[-1] if found else Path(str(on_path)).resolve()).parent


def _unprivileged_user() -> pwd.struct_passwd:
    names = {user.pw_name: user for user in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_CLUSTER = pytest.StashKey[Cluster]()


def cluster_of(config: pytest.Config) -> Cluster:
    """Return the session's one cluster, started when it is first asked for and stopped at the end."""
    if _CLUSTER not in config.stash:
        cluster = Cluster()
        config.add_cleanup(cluster.stop)
        config.stash[_CLUSTER] = cluster
    return config.stash[_CLUSTER]


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The session's PostgreSQL."""
    return cluster_of(request.config)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still; SQLite judges leases by it, PostgreSQL by its own."""
    return FakeClock()


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty_database(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Database]:
    """A database without tables: a SQLite file, or one on a real PostgreSQL."""
    async for database in _databases(request, tmp_path, clock, migrated=False):
        yield database


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Database]:
    """A database with all tables: a SQLite file, or one on a real PostgreSQL."""
    async for database in _databases(request, tmp_path, clock, migrated=True):
        yield database


async def _databases(
    request: pytest.FixtureRequest, folder: Path, clock: FakeClock, *, migrated: bool
) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        path = folder / "rows.sqlite3"
        if migrated:
            path.write_bytes(await _migrated_file(request.config, folder))
        sqlite = SqliteDatabase(path=path, clock=clock)
        yield sqlite
        await sqlite.close()
        return
    cluster = cluster_of(request.config)
    url = await cluster.new_database(migrated=migrated)
    postgres = PostgresDatabase(url=url)
    yield postgres
    await postgres.close()
    if migrated:
        await cluster.give_back(url)


_FILE = pytest.StashKey[bytes]()


async def _migrated_file(config: pytest.Config, folder: Path) -> bytes:
    """Return the bytes of a SQLite file with all tables, made once a session."""
    if _FILE not in config.stash:
        template = SqliteDatabase(path=folder / "template.sqlite3", clock=FakeClock())
        await template.write(migrate)
        await template.close()
        config.stash[_FILE] = (folder / "template.sqlite3").read_bytes()
    return config.stash[_FILE]
