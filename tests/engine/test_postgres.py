"""Workers over PostgreSQL: a server that restarts, commits whose answers are lost, and two at the same rows."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from batchmill.blobs.disk import DiskBlobs
from batchmill.ledger.ledger import Ledger
from batchmill.spec.states import Status
from batchmill.store.audit import lost_owners, missing_blobs, wrong_refs, wrong_sizes
from batchmill.store.database import Statements, T, Transaction
from batchmill.store.postgres import PostgresDatabase
from batchmill.store.slice import fence_slices, list_slices
from batchmill.store.tables import batch, organisation, worker
from batchmill.store.worker import forget_dead, has_elder, insert_worker, release_leases, renew_leases
from batchmill.telemetry import Metrics
from engine.mill import Mill, line, lines
from engine.test_account import agrees
from fakeclock import FakeClock
from faults.deaf import Deaf
from ledger.work import add_work, whole
from postgres import Cluster, cluster
from store.rows import LEASE, add_organisations

__all__ = ["cluster"]

COUNT = 600  # three Slices


@pytest.fixture
async def url(cluster: Cluster) -> AsyncIterator[str]:
    """A database with all tables."""
    given = await cluster.new_database()
    yield given
    await cluster.give_back(given)


@pytest.fixture
async def database(url: str) -> AsyncIterator[PostgresDatabase]:
    """A process's way to it."""
    opened = PostgresDatabase(url=url)
    yield opened
    await opened.close()


def a_mill(folder: Path, database: PostgresDatabase) -> Mill:
    """Return an empty mill over this database."""
    blobs = DiskBlobs(folder=folder / "blobs")
    return Mill(folder=folder, database=database, blobs=blobs, clock=FakeClock())  # type: ignore[arg-type] # a Database


async def check(mill: Mill, batch_id: str) -> None:
    """Assert that every line has one Result, and that rows and bytes agree."""
    facts = (await mill.look(batch_id)).object
    assert (facts.status, facts.counts.completed, facts.counts.failed) == (Status.COMPLETED, COUNT, 0)
    assert [line["custom_id"] for line in await mill.results(batch_id)] == [f"r-{n}" for n in range(COUNT)]
    for question in (wrong_refs, missing_blobs, wrong_sizes):
        assert await mill.database.read(question) == []
    assert await agrees(mill, batch_id)


async def test_of_two_validated_at_once_one_has_room(
    tmp_path: Path, url: str, database: PostgresDatabase, cluster: Cluster
) -> None:
    """Two workers that accept a batch in the same moment, where one more may be enqueued: one of them fails it."""
    mill = a_mill(tmp_path, database)
    hands = [mill.hand(mill.echo()) for _ in range(2)]
    await hands[0].scout.step()
    both = [await mill.batch(line("one", max_tokens=1_000)) for _ in hands]
    await mill.database.write(lambda tx: tx.connection.execute(organisation.update().values(enqueued_tokens=2_000)))
    # Each is held where it adds its Slices, the last thing that an accepted batch gets.
    await cluster.behind(url, "LOCK TABLE slice IN EXCLUSIVE MODE", *(hand.validator.step() for hand in hands))
    batches = [(await mill.look(batch_id)).object for batch_id in both]
    assert sorted(facts.status.value for facts in batches) == ["failed", "in_progress"]
    (error,) = next(facts.errors for facts in batches if facts.errors)
    assert error.code == "token_limit_exceeded"


@pytest.mark.parametrize("every", [1, 2])
async def test_a_batch_survives_lost_commits(tmp_path: Path, url: str, cluster: Cluster, every: int) -> None:
    """From claim to seal and sweep each transaction counts once, though the answer to every (other) COMMIT is lost."""
    proxy = await Deaf(port=cluster.port).start()
    database = PostgresDatabase(url=proxy.url(url))
    try:
        mill = a_mill(tmp_path, database)
        hand = mill.hand(mill.echo())
        proxy.lose_every(every)
        batch_id = await mill.batch(lines(COUNT))
        assert await mill.finish(hand, batch_id) is Status.COMPLETED
        while await mill.sweeper.step():
            pass
        assert proxy.lost > 5
        await check(mill, batch_id)
    finally:
        await database.close()
        await proxy.stop()


async def test_a_batch_survives_restarts(tmp_path: Path, database: PostgresDatabase, cluster: Cluster) -> None:
    """The server stops and starts between any two steps of a worker, which goes on as if nothing had been."""
    mill = a_mill(tmp_path, database)
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(COUNT))
    await hand.scout.step()
    cluster.restart()
    await hand.validator.step()
    for immediate in (True, False):
        await mill.turn(hand, seconds=0.2)
        cluster.restart(immediate=immediate)
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    await check(mill, batch_id)


class Counting:
    """A database that counts how often statements were run."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self.runs = 0

    async def read(self, statements: Statements[T]) -> T:
        """See `Database`."""
        return await self._database.read(statements)

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """See `Database`."""

        def counted(tx: Transaction) -> T:
            self.runs += 1
            return statements(tx)

        return await self._database.write(counted, before=before)

    async def version(self) -> int | None:
        """See `Database`."""
        return await self._database.version()

    async def close(self) -> None:
        """See `Database`."""


@pytest.mark.parametrize(
    "other",
    [
        lambda tx: renew_leases(tx, worker_id="w1", lease=LEASE),
        lambda tx: release_leases(tx, worker_id="w1"),
        lambda tx: fence_slices(tx, batch_id="batch_1"),
    ],
    ids=["renewal", "release", "fence"],
)
async def test_who_takes_several_slices_takes_them_in_one_order(
    tmp_path: Path, database: PostgresDatabase, url: str, cluster: Cluster, other: Statements[object]
) -> None:
    """A group commit and what else writes a worker's Slices wait for each other, and never both at once."""
    blobs, counting = DiskBlobs(folder=tmp_path), Counting(database)
    await database.write(add_organisations)
    await add_work(database, blobs, slices=8)
    ledger = Ledger(database=counting, blobs=blobs, clock=FakeClock(), worker_id="w1", lease=LEASE, metrics=Metrics())
    claims = await ledger.claim(slices=8, models=["m"])
    portions = [whole(claim) for claim in reversed(claims)]
    counting.runs = 0
    for owner in ("somebody", "w1"):  # which moves the rows: one UPDATE of them all would take these last
        statement = f"UPDATE slice SET owner = '{owner}' WHERE ordinal IN (0, 3)"  # noqa: S608 - our own names
        await cluster.administer(statement, name=url.rpartition("/")[2])
    held = "SELECT * FROM slice WHERE ordinal = 4 FOR UPDATE"
    outcomes = await cluster.behind(url, held, ledger.commit(portions), counting.write(other))
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert counting.runs == 2


async def test_two_sweepers_clear_a_batch_once(
    tmp_path: Path, database: PostgresDatabase, url: str, cluster: Cluster
) -> None:
    """Two that clear the same final batch at the same moment drop each of its references once."""
    mill = a_mill(tmp_path, database)
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(COUNT))
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    sweepers = [mill.sweeper, mill.sweeper]
    for held in (
        "SELECT * FROM segment FOR UPDATE",
        "SELECT * FROM slice FOR UPDATE",
        "SELECT * FROM batch FOR UPDATE",
    ):
        outcomes = await cluster.behind(url, held, *(sweeper.step() for sweeper in sweepers))
        assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    while await mill.sweeper.step():
        pass
    assert await database.read(lambda tx: list_slices(tx, batch_id=batch_id)) == []
    assert await database.read(lambda tx: tx.connection.scalar(select(batch.c.input_key))) is None
    await check(mill, batch_id)


async def test_the_oldest_living_worker_sweeps(database: PostgresDatabase) -> None:
    """A worker has an elder while an older one's lease holds, and takes over when that has lapsed."""

    def statements(tx: Transaction) -> list[bool]:
        insert_worker(tx, worker_id="worker_1", lease=LEASE, now=1)
        insert_worker(tx, worker_id="worker_2", lease=LEASE, now=2)
        both = [has_elder(tx, worker_id=f"worker_{n}") for n in (1, 2)]
        renew_leases(tx, worker_id="worker_1", lease=-1.0)
        return [*both, has_elder(tx, worker_id="worker_2")]

    assert await database.write(statements) == [False, True, False]


async def test_who_has_an_elder_sweeps_nothing(tmp_path: Path, database: PostgresDatabase) -> None:
    """A final batch is left to the older worker's Sweeper."""
    mill = a_mill(tmp_path, database)
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(1))
    await mill.finish(hand, batch_id)
    await database.write(lambda tx: insert_worker(tx, worker_id="worker_1", lease=LEASE, now=1))
    older, younger = (mill.sweeper_of(worker_id=f"worker_{n}") for n in (1, 2))
    assert not await younger.step()
    assert (await mill.look(batch_id)).input_key is not None
    while await older.step():
        pass
    assert (await mill.look(batch_id)).input_key is None


async def test_the_dead_are_forgotten_when_nothing_of_theirs_is_left(
    tmp_path: Path, database: PostgresDatabase
) -> None:
    """An hour after its lease a worker's row goes, but not while a Slice still says that it is its own."""
    await database.write(add_organisations)
    await add_work(database, DiskBlobs(folder=tmp_path))

    def workers(tx: Transaction) -> list[str]:
        return list(tx.connection.execute(select(worker.c.id).order_by(worker.c.id)).scalars())

    def die(tx: Transaction) -> None:
        for name, lease in (("w1", -4000.0), ("w2", -4000.0), ("w3", -3000.0)):
            insert_worker(tx, worker_id=name, lease=lease, now=1)

    await database.write(die)
    ledger = Ledger(
        database=database,
        blobs=DiskBlobs(folder=tmp_path),
        clock=FakeClock(),
        worker_id="w1",
        lease=LEASE,
        metrics=Metrics(),
    )
    assert await ledger.claim(slices=1, models=["m"])
    await database.write(forget_dead)
    assert await database.read(workers) == ["w1", "w3"]
    assert await database.read(lost_owners) == []
