"""Workers that share the window of one backend, by the rows."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from sqlalchemy import delete, insert, select
from structlog.testing import capture_logs

from batchmill.engine.sharing import Showing
from batchmill.spec.states import Status
from batchmill.store.database import Statements
from batchmill.store.lane import Standing, list_windows
from batchmill.store.tables import backend
from batchmill.store.worker import delete_worker, insert_worker
from engine.faulty import FaultyDatabase
from engine.mill import LEASE, Hand, Mill, Watched, lines
from fakeclock import settle

T = TypeVar("T")


class Counting(FaultyDatabase):
    """A database that counts its writes."""

    writes = 0

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """See `Database`."""
        self.writes += 1
        return await super().write(statements, before=before)


async def worker(mill: Mill, engine: Watched, *, window: int = 8, most: int | None = None) -> Hand:
    """Return a worker that lives and is not alone."""
    hand = mill.hand(engine, window=window, most=most, alone=False)
    await mill.database.write(lambda tx: insert_worker(tx, worker_id=hand.worker_id, lease=LEASE, now=1))
    await hand.scout.step()
    return hand


async def work(mill: Mill, *hands: Hand, seconds: float) -> None:
    """Let workers go on, each telling its part once a second, one after the other."""
    for quarter in range(int(seconds * 4)):
        for number, hand in enumerate(hands):
            if quarter % 4 == number:
                await mill.renew(hand)
                while await hand.sharing.step():
                    pass
            await hand.runner.step()
        await settle()
        await mill.clock.advance(0.25)


async def standing(mill: Mill) -> Standing:
    """Return how the one backend stands."""
    (only,) = await mill.database.read(list_windows)
    return only


async def test_two_workers_share_a_window_and_finish_a_batch(mill: Mill) -> None:
    """Both send, together no more than the total, and every line is done once."""
    engine = mill.echo(latency=0.2)
    hands = [await worker(mill, engine) for _ in range(2)]
    batch_id = await mill.batch(lines(600))
    await hands[0].accept()
    await work(mill, *hands, seconds=4)
    assert [hand.lanes[0].pace.window for hand in hands] == [4, 4]
    engine.most_open = 0
    await work(mill, *hands, seconds=16)
    assert engine.most_open == 8
    for hand in hands:
        assert (hand.metrics.registry.get_sample_value("batchmill_lines_total", {"outcome": "succeeded"}) or 0) > 100
    while await hands[0].finalizer.step():
        pass
    assert await mill.status(batch_id) is Status.COMPLETED
    assert len({call.idempotency_key for call in engine.calls}) == len(engine.calls) == 600


async def test_a_worker_that_died_is_absorbed(mill: Mill) -> None:
    """Until its lease has lapsed its part stays untouched; then the other has all of the window, and leads."""
    engine = mill.echo(latency=0.35)
    dead, heir = [await worker(mill, engine) for _ in range(2)]
    await mill.batch(lines(2000))
    await dead.accept()
    await work(mill, dead, heir, seconds=3)
    assert (await standing(mill)).leader == dead.worker_id
    await dead.runner.abort()
    await work(mill, heir, seconds=LEASE - 2)
    assert heir.lanes[0].pace.window == 4
    await work(mill, heir, seconds=3)
    assert heir.lanes[0].pace.window == 8
    assert await standing(mill) == Standing(name="echo:", total=8, leader=heir.worker_id, in_flight=8, workers=1)
    engine.most_open = 0
    late = await worker(mill, engine)
    await work(mill, heir, late, seconds=4)
    assert [hand.lanes[0].pace.window for hand in (heir, late)] == [4, 4]
    assert engine.most_open <= 8 + 2
    await late.runner.abort()
    await mill.database.write(lambda tx: delete_worker(tx, worker_id=late.worker_id))
    await work(mill, heir, seconds=2)
    assert heir.lanes[0].pace.window == 8


async def test_two_workers_find_a_window(mill: Mill) -> None:
    """An engine that takes whatever comes: the total grows by what both have measured, and both have half of it."""
    engine = mill.echo(latency=0.35)
    hands = [await worker(mill, engine, window=8, most=64) for _ in range(2)]
    await mill.batch(lines(3000))
    await hands[0].accept()
    await work(mill, *hands, seconds=10)
    assert (await standing(mill)).total > 16
    totals = (await standing(mill)).total
    assert sum(hand.lanes[0].pace.window for hand in hands) in range(totals - 1, totals + 2)


async def test_idle_workers_write_nothing(mill: Mill) -> None:
    """They look whether somebody has come or gone, and their rows stay as they are."""
    mill.database = database = Counting(mill.database)
    engine = mill.echo()
    hands = [await worker(mill, engine) for _ in range(2)]
    for _ in range(3):
        for hand in hands:
            await hand.sharing.step()
    database.writes = 0
    for _ in range(10):
        for hand in hands:
            assert not await hand.sharing.step()
    assert database.writes == 0
    assert [hand.lanes[0].pace.window for hand in hands] == [4, 4]
    await mill.database.write(lambda tx: delete_worker(tx, worker_id=hands[0].worker_id))
    await hands[1].sharing.step()
    assert hands[1].lanes[0].pace.window == 8


async def test_what_was_not_told_is_told_later(mill: Mill) -> None:
    """A backend that could not be told of in one step, as another worker was at it, is told of in a later one."""
    hand = mill.hand(mill.echo(name="a"), mill.echo(name="b"), alone=False)
    await mill.database.write(lambda tx: insert_worker(tx, worker_id=hand.worker_id, lease=LEASE, now=1))
    await hand.scout.step()
    for lane in hand.lanes:
        lane.pace.sent(mill.clock.boot())
    await hand.sharing.step()
    assert [each.in_flight for each in await mill.database.read(list_windows)] == [1, 1]
    for lane in hand.lanes:
        lane.pace.withdrawn()
    row = await mill.database.read(lambda tx: tx.connection.execute(select(backend).filter_by(name="b")).one())
    await mill.database.write(lambda tx: tx.connection.execute(delete(backend).filter_by(name="b")))
    await hand.sharing.step()
    await mill.database.write(lambda tx: tx.connection.execute(insert(backend).values(**row._mapping)))
    await hand.sharing.step()
    assert [each.in_flight for each in await mill.database.read(list_windows)] == [0, 0]


async def test_a_full_database_leaves_each_its_part(mill: Mill) -> None:
    """It is no fault, and logged once; when there is room again it is told."""
    mill.database = database = FaultyDatabase(mill.database)
    hand = await worker(mill, mill.echo())
    database.full = True
    with capture_logs() as logged:
        for _ in range(3):
            await hand.sharing.step()
    assert [entry["event"] for entry in logged] == ["not told: the disk is full"]
    assert hand.lanes[0].pace.window == 1
    database.full = False
    await hand.sharing.step()
    assert hand.lanes[0].pace.window == 8


async def test_a_worker_that_is_alone_shows_what_it_has_in_flight(mill: Mill) -> None:
    """Who looks sees its window and what is in flight; nothing is written while neither changes."""
    engine = mill.echo(latency=2.0)
    hand = mill.hand(engine, window=12)
    await mill.database.write(lambda tx: insert_worker(tx, worker_id=hand.worker_id, lease=LEASE, now=1))
    database = Counting(mill.database)
    showing = Showing(database=database, lanes=hand.all_lanes, worker_id=hand.worker_id)
    await showing.step()
    assert await mill.database.read(list_windows) == []  # nobody has asked the backend yet
    await hand.scout.step()
    await showing.step()
    at_rest = Standing(name="echo:", total=12, leader=hand.worker_id, in_flight=0, workers=1)
    assert await standing(mill) == at_rest
    await mill.batch(lines(12))
    await hand.accept()
    await hand.runner.step()
    await settle()
    await showing.step()
    assert await standing(mill) == replace(at_rest, in_flight=12)
    written = database.writes
    await showing.step()
    assert database.writes == written
