"""PostgreSQL as it is when something goes wrong: restarts, cut connections, lost answers, poolers, silence."""

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from structlog.testing import capture_logs

from batchmill.store.database import DatabaseAway, Transaction
from batchmill.store.dsn import BadDatabaseUrl, read_dsn
from batchmill.store.migrate import migrate
from batchmill.store.model import add_models, list_models
from batchmill.store.postgres import PostgresDatabase
from batchmill.store.server import RefusedDatabase, UnsafeDatabase, check_server
from batchmill.store.tables import model, transaction_name
from batchmill.store.worker import forget_names
from faults.deaf import Deaf, Moment
from postgres import Bouncer, Cluster
from store.rows import meanwhile

Open = Callable[..., Any]


@pytest.fixture
async def url(cluster: Cluster) -> AsyncIterator[str]:
    """A database with all tables and no row."""
    given = await cluster.new_database()
    yield given
    await cluster.give_back(given)


@pytest.fixture
async def open_at() -> AsyncIterator[Open]:
    """Open databases that are closed with the test."""
    opened: list[PostgresDatabase] = []

    def start(url: str, **settings: Any) -> PostgresDatabase:  # noqa: ANN401 - those of the constructor
        opened.append(PostgresDatabase(url=url, **settings))
        return opened[-1]

    yield start
    for database in opened:
        await database.close()


@asynccontextmanager
async def deaf_to(cluster: Cluster | Bouncer) -> AsyncIterator[Deaf]:
    """Put a proxy that loses COMMITs before a server."""
    proxy = await Deaf(port=cluster.port).start()
    try:
        yield proxy
    finally:
        await proxy.stop()


class Adding:
    """Statements that add a model, and count how often they were run."""

    def __init__(self, name: str = "m", *, then: Callable[[], object] | None = None) -> None:
        self.runs = 0
        self._name = name
        self._then = then

    def __call__(self, tx: Transaction) -> int:
        """Add it; return which run this is."""
        self.runs += 1
        tx.connection.execute(insert(model).values(name=self._name, created_at=self.runs))
        if self.runs == 1 and self._then is not None:
            self._then()
        return self.runs


async def names(database: PostgresDatabase) -> list[str]:
    """Return the models there are."""
    return [name for name, _ in await database.read(list_models)]


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
async def test_every_transaction_has_its_settings(open_at: Open, url: str, bouncer: Bouncer, *, pooled: bool) -> None:
    """Commits wait for the disk, and neither locks, statements nor idle transactions last for ever, pooler or not."""
    wanted = {
        "synchronous_commit": "on",
        "lock_timeout": "3s",
        "statement_timeout": "30s",
        "idle_in_transaction_session_timeout": "10s",
    }

    def settings(tx: Transaction) -> dict[str, object]:
        return {name: tx.connection.scalar(text(f"SHOW {name}")) for name in wanted}

    database = open_at(bouncer.url(url) if pooled else url, pooled=pooled)
    assert await database.write(settings) == wanted
    assert await database.read(settings) == wanted


async def test_a_connection_says_whose_it_is(open_at: Open, url: str) -> None:
    """`pg_stat_activity` tells a worker from an API process, and at most `pool_size` connections are open."""
    database = open_at(url, role="worker", pool_size=2)
    query = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'batchmill worker'")
    counts = await asyncio.gather(*(database.read(lambda tx: tx.connection.scalar(query)) for _ in range(20)))
    assert 1 <= max(count or 0 for count in counts) <= 2


@pytest.mark.parametrize("immediate", [False, True], ids=["fast", "immediate"])
async def test_a_restart_is_waited_for(open_at: Open, url: str, cluster: Cluster, *, immediate: bool) -> None:
    """Reads and writes that meet a server that is down are carried out once it is up again."""
    database = open_at(url)
    await database.write(Adding("a"))
    cluster.halt(immediate=immediate)
    calls = [asyncio.create_task(database.write(Adding("b"))), asyncio.create_task(names(database))]
    done, _ = await asyncio.wait(calls, timeout=0.1)
    assert not done
    cluster.start()
    await asyncio.gather(*calls)
    assert await names(database) == ["a", "b"]


async def test_a_transaction_that_loses_its_connection_is_run_again(open_at: Open, url: str, cluster: Cluster) -> None:
    """What was written before the loss is not there, so all of it is run again; `before` is not."""
    loop, database, befores = asyncio.get_running_loop(), open_at(url), []
    adding = Adding(then=lambda: meanwhile(loop, cluster.cut_connections(url)))
    assert await database.write(adding, before=lambda: befores.append(1)) == 2
    assert (await names(database), befores) == (["m"], [1])


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
@pytest.mark.parametrize("moment", ["after", "before"])
async def test_the_outcome_of_a_lost_commit_is_found_out(
    open_at: Open, url: str, cluster: Cluster, bouncer: Bouncer, *, moment: Moment, pooled: bool
) -> None:
    """A commit whose answer is lost counts and is not run again; one that never arrived is."""
    runs = 1 if moment == "after" else 2
    async with deaf_to(bouncer if pooled else cluster) as proxy:
        database = open_at(proxy.url(url), pooled=pooled)
        await names(database)
        proxy.lose(1, moment=moment)
        adding = Adding()
        assert await database.write(adding) == runs
        assert (adding.runs, proxy.lost) == (runs, 1)
        assert await names(database) == ["m"]
        await database.close()


async def test_an_id_that_was_given_to_another_transaction_proves_nothing(
    open_at: Open, url: str, cluster: Cluster
) -> None:
    """Of two with one id, as after a crash of the server, only that one counts which has left its name."""
    runs = []

    def nameless(tx: Transaction) -> int:
        runs.append(1)
        add_models(tx, names=[f"run-{len(runs)}"], now=1)
        if len(runs) == 1:  # its id is found to be committed, and it is not it
            tx.connection.execute(delete(transaction_name))
        return len(runs)

    async with deaf_to(cluster) as proxy:
        database = open_at(proxy.url(url))
        await names(database)
        proxy.lose(1, moment="after")
        assert await database.write(nameless) == 2
        await database.close()


async def test_names_of_transactions_are_forgotten(open_at: Open, url: str) -> None:
    """Each write leaves its name; after an hour, in which nobody can be asking for it any more, it goes."""
    database = open_at(url)
    await database.write(lambda tx: tx.connection.execute(delete(transaction_name)))
    await database.write(Adding())

    def count(tx: Transaction) -> int:
        return int(tx.connection.execute(select(func.count()).select_from(transaction_name)).scalar_one())

    assert await database.read(count) == 1
    await database.write(forget_names)
    assert await database.read(count) == 2
    await database.write(lambda tx: tx.connection.execute(update(transaction_name).values(begun_at=0)))
    await database.write(forget_names)
    assert await database.read(count) == 1


async def test_commits_are_lost_one_after_the_other(open_at: Open, url: str, cluster: Cluster) -> None:
    """However often a commit never arrives it is sent again, and counts once."""
    async with deaf_to(cluster) as proxy:
        database = open_at(proxy.url(url))
        proxy.lose(4, moment="before")
        assert await database.write(Adding()) == 5
        assert await names(database) == ["m"]
        await database.close()


async def test_a_server_that_stays_away_is_a_fault_of_its_own(open_at: Open, url: str, cluster: Cluster) -> None:
    """After the patience reads and writes raise DatabaseAway, which says why in one line."""
    database = open_at(url, patience=0.3)
    cluster.halt()
    try:
        for call in (database.read(list_models), database.write(Adding())):
            with pytest.raises(DatabaseAway, match="Connect call failed") as away:
                await call
            assert "\n" not in str(away.value)
    finally:
        cluster.start()
    await database.write(Adding())


async def test_a_server_that_says_nothing_is_not_waited_for(open_at: Open, url: str, cluster: Cluster) -> None:
    """A stopped server, which acknowledges every packet, costs the patience and no more; then it goes on."""
    loop = asyncio.get_running_loop()
    warm, cold = open_at(url, patience=0.5), open_at(url, patience=0.5)
    await names(warm)
    with cluster.paused():
        began = loop.time()
        for database in (warm, cold):
            with pytest.raises(DatabaseAway):
                await database.write(Adding())
        assert 1.0 <= loop.time() - began < 3.0
    assert await names(warm) == []


async def test_more_callers_than_connections_wait_their_turn(open_at: Open, url: str, cluster: Cluster) -> None:
    """When all connections hang, who waits for one gives up with the same fault."""
    database = open_at(url, patience=0.4, pool_size=1)
    await names(database)
    with cluster.paused():
        faults = await asyncio.gather(*(names(database) for _ in range(5)), return_exceptions=True)
    assert [type(fault) for fault in faults] == [DatabaseAway] * 5


async def test_a_deadlock_is_nobodys_fault(open_at: Open, url: str) -> None:
    """Of two that wait for each other one is run again, and both are done."""
    database = open_at(url)
    await database.write(lambda tx: [tx.connection.execute(insert(model).values(name=n, created_at=0)) for n in "ab"])
    barrier, runs = asyncio.Barrier(2), []

    def touch(names: str) -> Callable[[Transaction], None]:
        met = False

        def statements(tx: Transaction) -> None:
            nonlocal met
            for name in names:
                tx.connection.execute(model.update().where(model.c.name == name).values(created_at=1))
                if not met:
                    met = True
                    meanwhile(asyncio.get_running_loop(), barrier.wait())
            runs.append(names)

        return statements

    await asyncio.gather(database.write(touch("ab")), database.write(touch("ba")))
    assert sorted(runs) == ["ab", "ba"]


async def test_who_collides_looks_again(open_at: Open, url: str) -> None:
    """Two that look, find nothing and insert the same: the second is run again, and finds it."""
    database = open_at(url)
    loop, collided = asyncio.get_running_loop(), []

    def find_or_add(tx: Transaction) -> str:
        if tx.connection.scalar(select(model.c.name)) is not None:
            return "found"
        if not collided:
            collided.append(1)
            meanwhile(loop, database.write(Adding()))
        return f"added {Adding()(tx)}"

    assert await database.write(find_or_add) == "found"


async def test_what_is_no_race_is_raised(open_at: Open, url: str) -> None:
    """A row that is there already is the statement's fault, after a few tries; so is any other error of it, at once."""
    database = open_at(url)
    await database.write(Adding())
    adding = Adding()
    with pytest.raises(IntegrityError):
        await database.write(adding)
    assert adding.runs > 1
    with pytest.raises(DBAPIError, match="division by zero"):
        await database.write(lambda tx: tx.connection.execute(text("SELECT 1 / 0")))


async def test_a_database_without_tables_is_away(cluster: Cluster, open_at: Open) -> None:
    """Before the migration nothing is waited for: the fault says at once which table is missing."""
    database = open_at(await cluster.new_database(migrated=False), patience=60)
    with pytest.raises(DatabaseAway, match='"model" does not exist'):
        await database.read(list_models)


async def test_no_fault_tells_the_password(cluster: Cluster, open_at: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the exception with all its causes nor any log holds the password, whoever refuses the connection."""
    secret = "hunter2-s3cret"
    told = ""
    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs:
        for rest in (f"127.0.0.1:{cluster.port}/nowhere", "127.0.0.1:1/x", "no-such-host.invalid/x"):
            database = open_at(f"postgresql://batchmill:{secret}@{rest}", patience=0.2)
            with pytest.raises(DatabaseAway) as away:
                await database.write(Adding())
            told += "".join(traceback.format_exception(away.value)) + repr(database.__dict__)
            await database.version()
            await database.close()
    assert secret not in told + caplog.text + str(logs)
    assert 'database "nowhere" does not exist' in told


@pytest.mark.parametrize(
    ("url", "arguments"),
    [
        ("postgresql://h/db", {"dsn": "postgresql://h/db"}),
        ("postgres://u@h:5433/db", {"dsn": "postgresql://h:5433/db", "user": "u"}),
        ("postgresql://u:p%2F%40%3A@h/db", {"dsn": "postgresql://h/db", "user": "u", "password": "p/@:"}),
        ("postgresql:///db?host=/run/pg", {"dsn": "postgresql:///db?host=%2Frun%2Fpg"}),
        ("postgresql://h/db?sslmode=require", {"dsn": "postgresql://h/db?sslmode=require"}),
        ("postgresql://h/db?ssl=require", {"dsn": "postgresql://h/db?sslmode=require"}),
        (
            "postgresql://a:1,b:2/db?target_session_attrs=read-write",
            {"dsn": "postgresql://a:1,b:2/db?target_session_attrs=read-write"},
        ),
        ("postgresql://[::1]:5432/db", {"dsn": "postgresql://[::1]:5432/db"}),
    ],
)
def test_a_url_is_what_psql_takes(url: str, arguments: dict[str, str]) -> None:
    """User and password are taken out of it, all else is asyncpg's to read."""
    assert read_dsn(url) == arguments


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://u:SECRET@h/db", "must begin with postgresql://"),
        ("postgresql://u:SE/CRET@h/db", "%2F"),
        ("postgresql://u:SE?CRET@h/db", "%3F"),
        ("postgresql://u:SE#CRET@h/db", "%23"),
        ("postgresql://u:SECRET@h:port/db", "no host"),
        ("postgresql://u:SECRET@[::1/db", "cannot be read"),
        ("postgresql://u:SECRET@h/db?sslmod=require", "'sslmod'"),
        ("postgresql://u:SECRET@h/db?connect_timeout=3", "leave connect_timeout out"),
    ],
)
def test_a_url_is_refused_in_a_sentence(url: str, why: str) -> None:
    """The sentence says what is wrong and quotes no part of a password."""
    with pytest.raises(BadDatabaseUrl) as refused:
        read_dsn(url)
    assert why in str(refused.value)
    assert not any(part in "".join(traceback.format_exception(refused.value)) for part in ("SECRET", "CRET@"))


async def test_tls_is_asked_for_as_psql_asks(open_at: Open, url: str) -> None:
    """A server without TLS is refused where the URL demands it."""
    database = open_at(f"{url}?sslmode=require", patience=0.2)
    with pytest.raises(DatabaseAway, match="SSL"):
        await database.read(list_models)


async def test_tls_is_verified_as_psql_verifies_it(open_at: Open, url: str, cluster: Cluster, tmp_path: Path) -> None:
    """With `verify-full` and the authority's certificate the session is encrypted; another authority is refused."""
    ours, other = tmp_path / "ours.crt", tmp_path / "other.crt"
    other.write_bytes(cluster.make_certificate().read_bytes())
    ours.write_bytes(cluster.make_certificate().read_bytes())
    cluster.restart(ssl="on")
    try:
        query = text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        database = open_at(f"{url}?sslmode=verify-full&sslrootcert={ours}")
        assert await database.read(lambda tx: tx.connection.scalar(query)) is True
        database = open_at(f"{url}?sslmode=verify-full&sslrootcert={other}", patience=0.2)
        with pytest.raises(DatabaseAway, match="certificate verify failed"):
            await database.read(list_models)
    finally:
        cluster.restart(ssl="off")


async def test_a_pooler_may_give_each_transaction_another_session(open_at: Open, url: str, bouncer: Bouncer) -> None:
    """Many transactions at once over few sessions: each has its own snapshot, and none meets another's statement."""
    databases = [open_at(bouncer.url(url), pooled=True, pool_size=6) for _ in range(3)]

    def statements(tx: Transaction, name: str) -> int:
        before = len(list_models(tx))
        tx.connection.execute(insert(model), [{"name": f"{name}-{n}", "created_at": 1} for n in range(3)])
        return len(list_models(tx)) - before

    added = await asyncio.gather(
        *(databases[n % 3].write(lambda tx, n=n: statements(tx, str(n))) for n in range(60)),
        *(databases[n % 3].read(list_models) for n in range(60)),
    )
    assert all(count >= 3 for count in added[:60] if isinstance(count, int))
    assert len(await names(databases[0])) == 180


async def test_migrations_run_through_a_pooler(open_at: Open, cluster: Cluster, bouncer: Bouncer) -> None:
    """Five processes that start at once behind it bring an empty database up to date, one after the other."""
    empty = bouncer.url(await cluster.new_database(migrated=False))
    databases = [open_at(empty, pooled=True) for _ in range(5)]
    await asyncio.gather(*(database.write(migrate) for database in databases))
    assert await names(databases[0]) == []


async def heard(database: PostgresDatabase, since: int | None) -> int | None:
    """Wait until the version is another one."""
    while (now := await database.version()) == since:  # noqa: ASYNC110 - this is how the Doorbell looks
        await asyncio.sleep(0.001)
    return now


async def test_the_bell_rings_for_what_is_rung_for(open_at: Open, url: str) -> None:
    """A commit that rings changes every process's version within moments, one that does not changes none."""
    writer, listener = open_at(url), open_at(url, role="worker")
    deaf = await listener.version()
    told = await heard(listener, deaf)  # it listens
    await writer.write(Adding("a"))
    await writer.write(Adding("b"))

    def ring(tx: Transaction) -> None:
        tx.ring()
        assert tx.connection.scalar(text("SELECT 1"))

    assert await listener.version() == told
    await writer.write(ring)
    await asyncio.wait_for(heard(listener, told), timeout=0.5)


async def test_the_bell_comes_back(open_at: Open, url: str, cluster: Cluster) -> None:
    """After its connection was cut the listener listens anew, and looks once for what it has missed."""
    listener = open_at(url)
    told = await heard(listener, await listener.version())
    await cluster.cut_connections(url)
    told = await asyncio.wait_for(heard(listener, told), timeout=3)
    await asyncio.wait_for(heard(listener, told), timeout=3)


async def test_behind_a_pooler_the_rows_are_looked_at_once_a_second(open_at: Open, url: str, bouncer: Bouncer) -> None:
    """Nobody listens there: the version differs once a second, however often it is asked for."""
    database = open_at(bouncer.url(url), pooled=True)
    first = await database.version()
    assert first == await database.version()
    began = asyncio.get_running_loop().time()
    await asyncio.wait_for(heard(database, first), timeout=2)
    assert asyncio.get_running_loop().time() - began > 0.9


async def test_a_server_that_may_lose_commits_is_refused(open_at: Open, url: str, cluster: Cluster) -> None:
    """`fsync=off` and `full_page_writes=off` are named and refused, unless that is what is wanted."""
    database = open_at(url)
    with pytest.raises(UnsafeDatabase, match="fsync=off"):
        await database.read(check_server)
    await database.read(lambda tx: check_server(tx, allow_unsafe=True))
    cluster.restart(fsync="on", full_page_writes="off")
    try:
        with pytest.raises(UnsafeDatabase, match="full_page_writes=off"):
            await database.read(check_server)
        cluster.restart(full_page_writes="on")
        await database.read(check_server)
    finally:
        cluster.restart(fsync="off", full_page_writes="on")


async def test_a_database_without_utf8_is_refused(open_at: Open, url: str, cluster: Cluster) -> None:
    """Text that it could not keep is not found out about line by line."""
    await cluster.administer("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    database = open_at(f"{url.rpartition('/')[0]}/latin")
    with pytest.raises(RefusedDatabase, match="LATIN1"):
        await database.read(lambda tx: check_server(tx, allow_unsafe=True))
