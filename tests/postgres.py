"""A real PostgreSQL for the tests, and the fixture that runs one suite on SQLite and on PostgreSQL."""

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest

from batchmill.store.database import Database, SqliteDatabase
from batchmill.store.migrate import migrate
from batchmill.store.postgres import PostgresDatabase
from batchmill.store.tables import metadata
from fakeclock import FakeClock

T = TypeVar("T")

_READY = "ready to accept connections"


class Cluster:
    """One PostgreSQL server on a socket and a free port of 127.0.0.1, with as many databases as are asked for.

    Its nemesis is here, too: it can be halted and started, paused, and its connections cut.

    Args:
        settings: Of the server, beside those of a new cluster.

    Raises:
        RuntimeError: PostgreSQL is not installed, or does not start.
    """

    def __init__(self, **settings: str) -> None:
        self._programs = _find_programs()
        self._folder = Path(tempfile.mkdtemp(prefix="batchmill-postgres-"))
        self._as_user = unprivileged(self._folder)
        self._settings = {"fsync": "off"} | settings  # no test cuts the power
        self._numbers = count()
        self._clean: list[str] = []
        self._server: subprocess.Popen[str] | None = None
        try:
            self.port = free_port()
            self._initialise()
            self.start()
        except BaseException:
            shutil.rmtree(self._folder)
            raise

    def start(self, **settings: str) -> None:
        """Start the server, from now on with these settings, and return once it accepts connections.

        It dies with the thread that calls this: let it be the process's first.
        """
        self._settings |= settings
        command = [str(self._programs / "postgres"), "-D", str(self._folder / "data"), "-k", str(self._folder)]
        command += ["-h", "127.0.0.1", "-p", str(self.port)]
        command += [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
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
        self._server = server

    def halt(self, *, immediate: bool = False) -> None:
        """Shut the server down and return once it has ended: fast, or at once, as a crash of it would.

        Either way all connections are cut.
        """
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
            self._server.wait()
            self._draining.join()
            self._server = None

    def restart(self, *, immediate: bool = False, **settings: str) -> None:
        """Halt the server and start it again."""
        self.halt(immediate=immediate)
        self.start(**settings)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop every process of the server: it keeps its connections and takes new ones, and answers nothing."""
        assert self._server is not None
        pids = [self._server.pid, *_children(self._server.pid)]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in reversed(pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        """End the server, whatever is still connected, and remove its files."""
        self.halt()
        shutil.rmtree(self._folder)

    def make_certificate(self) -> Path:
        """Make a key and a certificate for 127.0.0.1 and return the latter; `ssl="on"` takes them from then on."""
        key, certificate = (self._folder / "data" / name for name in ("server.key", "server.crt"))
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        command += ["-keyout", str(key), "-out", str(certificate)]
        subprocess.run([*self._as_user, *command], capture_output=True, check=True, cwd="/")
        return certificate

    async def new_database(self, *, migrated: bool = True) -> str:
        """Make a database, empty or with all tables and no row, and return its URL."""
        if not migrated:
            name = f"test{next(self._numbers)}"
            await self.administer(f"CREATE DATABASE {name}")
            return f"postgresql://batchmill@127.0.0.1:{self.port}/{name}"
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
        await self.administer("; ".join(rows), name=url.rpartition("/")[2])
        self._clean.append(url)

    async def cut_connections(self, url: str) -> None:
        """End every connection to a database, as an administrator may; the server goes on."""
        name = url.rpartition("/")[2]
        await self.administer(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608 - our own name

    async def behind(self, url: str, statement: str, *calls: Coroutine[Any, Any, T]) -> list[T | BaseException]:
        """Begin calls while another transaction holds what `statement` locks; return what each gives.

        It lets go once each of them waits for a lock or has ended: so they meet where the test wants them to.
        """
        holding, looking = [await asyncpg.connect(url) for _ in range(2)]
        await holding.execute(f"BEGIN; {statement}")
        running = [asyncio.create_task(call) for call in calls]
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        while sum(not call.done() for call in running) > await looking.fetchval(waiting):  # noqa: ASYNC110 - a server's locks ring no bell
            await asyncio.sleep(0.002)
        for connection in (holding, looking):
            await connection.close()
        return await asyncio.gather(*running, return_exceptions=True)

    async def administer(self, statement: str, *, name: str = "postgres") -> None:
        """Execute a statement as the superuser."""
        connection = await asyncpg.connect(host=str(self._folder), port=self.port, user="batchmill", database=name)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _initialise(self) -> None:
        command = [str(self._programs / "initdb"), "--username=batchmill", "--auth=trust", "--no-sync"]
        command += ["--encoding=UTF8", "--locale=C.UTF-8", "--lc-messages=C", str(self._folder / "data")]
        done = subprocess.run([*self._as_user, *command], capture_output=True, text=True, check=False, cwd="/")
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stderr}")


class Bouncer:
    """A pgbouncer in transaction mode in front of a cluster: each transaction may get another session.

    Raises:
        RuntimeError: pgbouncer is not installed, or does not start.
    """

    def __init__(self, cluster: Cluster, *, sessions: int = 4) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise RuntimeError("These tests need a real pgbouncer: install the Debian package `pgbouncer`.")
        self._folder = Path(tempfile.mkdtemp(prefix="batchmill-pgbouncer-"))
        as_user = unprivileged(self._folder)
        self.port = free_port()
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(
            f"""[databases]
* = host=127.0.0.1 port={cluster.port} user=batchmill
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {sessions}
server_login_retry = 1
"""
        )
        settings.chmod(0o644)
        self._process = subprocess.Popen([*as_user, program, "-q", str(settings)], stderr=subprocess.DEVNULL, cwd="/")
        _await_port(self.port, self._process)

    def url(self, url: str) -> str:
        """Return the way to a database through it; any user of the cluster is taken for what it says it is."""
        return f"postgresql://127.0.0.1:{self.port}/{url.rpartition('/')[2]}"

    def stop(self) -> None:
        """End it, whatever is still connected."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)


def _await_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise RuntimeError("pgbouncer did not start")


def unprivileged(folder: Path) -> list[str]:
    """Give a folder away and return what a command is to begin with; these servers refuse to run as root."""
    if os.geteuid() != 0:
        return ["setpriv", "--pdeathsig", "KILL"]
    user = _unprivileged_user()
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--pdeathsig", "KILL"]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


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


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_CLUSTER = pytest.StashKey[Cluster]()
_BOUNCER = pytest.StashKey[Bouncer]()


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
def bouncer(cluster: Cluster, request: pytest.FixtureRequest) -> Bouncer:
    """The session's pgbouncer, in front of its PostgreSQL."""
    if _BOUNCER not in request.config.stash:
        started = Bouncer(cluster)
        request.config.add_cleanup(started.stop)
        request.config.stash[_BOUNCER] = started
    return request.config.stash[_BOUNCER]


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
            path.write_bytes(await migrated_file(request.config, folder))
        sqlite = SqliteDatabase(path=path, clock=clock)
        yield sqlite
        await sqlite.close()
        return
    cluster = cluster_of(request.config)
    url = await cluster.new_database(migrated=migrated)
    postgres = PostgresDatabase(url=url, patience=60.0)  # of a busy machine
    yield postgres
    await postgres.close()
    if migrated:
        await cluster.give_back(url)


_FILE = pytest.StashKey[bytes]()


async def migrated_file(config: pytest.Config, folder: Path) -> bytes:
    """Return the bytes of a SQLite file with all tables, made once a session."""
    if _FILE not in config.stash:
        template = SqliteDatabase(path=folder / "template.sqlite3", clock=FakeClock())
        await template.write(migrate)
        await template.close()
        config.stash[_FILE] = (folder / "template.sqlite3").read_bytes()
    return config.stash[_FILE]
