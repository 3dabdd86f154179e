"""The rows of lanes: health as all find it, and windows that workers share."""

import asyncio

import pytest

from batchmill.schedule.measure import Measure
from batchmill.schedule.share import Part, Total
from batchmill.store.database import Database, Transaction
from batchmill.store.lane import Standing, Told, forget_backends, leave_lane, list_windows, look, say_health, tell
from batchmill.store.model import BackendState, list_backends
from batchmill.store.worker import delete_worker, insert_worker, void_leases

BUSY = Told(Part(in_flight=3, wanted=100, round=0, pressed=2, measure=Measure(1.5, 3.0, 4, 5.0, 6.0, 7.0)), None, 8)
IDLE = Told(Part(), None, 8)


@pytest.fixture
async def known(database: Database) -> Database:
    """Rows in which two workers live, a and b, that have both asked the backend x."""

    def statements(tx: Transaction) -> None:
        for name in "ab":
            insert_worker(tx, worker_id=name, lease=60.0, now=1)
            say_health(tx, worker_id=name, name="x", reason=None, now=1)

    await database.write(statements)
    return database


async def say(database: Database, worker: str, reason: str | None, now: int) -> BackendState:
    """Let a worker say how it finds x; return how x is then."""
    await database.write(lambda tx: say_health(tx, worker_id=worker, name="x", reason=reason, now=now))
    (state,) = await database.read(list_backends)
    return state


async def dies(database: Database, worker: str) -> None:
    """Let a worker's lease lapse."""
    await database.write(lambda tx: delete_worker_row(tx, worker))


def delete_worker_row(tx: Transaction, name: str) -> None:
    """Let nobody know a worker any more, but leave its lanes: as when its lease has lapsed."""
    tx.connection.exec_driver_sql(f"DELETE FROM worker WHERE id = '{name}'")  # noqa: S608 - a letter


async def test_a_backend_is_well_while_any_worker_finds_it_so(known: Database) -> None:
    """One worker that cannot reach it says nothing of it; when none can, the row has a reason, and since when."""
    well = BackendState(name="x", well=True, reason=None, since=1)
    assert await say(known, "a", "refused", 5) == well
    assert await say(known, "b", "gone", 6) == BackendState(name="x", well=False, reason="refused", since=6)
    assert (await say(known, "a", "late", 7)).since == 6
    assert await say(known, "b", None, 8) == BackendState(name="x", well=True, reason=None, since=8)


async def test_what_a_dead_worker_found_counts_no_more(known: Database) -> None:
    """The others' next word stands for itself, and the dead one's lane goes."""
    await say(known, "a", "refused", 5)
    await dies(known, "b")
    heard, is_news = await known.read(lambda tx: look(tx, worker_id="a", told={"x": IDLE}))
    assert is_news
    assert heard["x"].others == {}
    await known.write(lambda tx: tell(tx, worker_id="a", told={"x": IDLE}, now=9))
    assert await known.read(list_backends) == [BackendState(name="x", well=False, reason="refused", since=9)]
    assert await known.read(list_windows) == [Standing(name="x", total=8, leader="a", in_flight=0, workers=1)]


async def test_workers_that_find_the_same_at_once_agree(known: Database) -> None:
    """Whatever the order, a backend that all find unwell is unwell."""
    for turn in range(5):
        await asyncio.gather(*(say(known, each, f"refused {turn}", turn) for each in "ab"))
        (state,) = await known.read(list_backends)
        assert not state.well
        await say(known, "a", None, turn)


async def test_a_backend_goes_with_the_last_lane(known: Database) -> None:
    """A worker that does not know it deletes nothing while another has a lane; the last one to leave does."""
    await known.write(lambda tx: forget_backends(tx, worker_id="c", names=["y"]))
    await known.write(lambda tx: leave_lane(tx, worker_id="a", name="x"))
    assert len(await known.read(list_backends)) == 1
    await known.write(lambda tx: leave_lane(tx, worker_id="b", name="x"))
    assert await known.read(list_backends) == []


async def test_a_backend_of_the_dead_alone_is_forgotten(known: Database) -> None:
    """Once another worker tells anything, or begins; its own and those of the living stay."""
    await known.write(lambda tx: insert_worker(tx, worker_id="c", lease=60.0, now=1))
    await known.write(lambda tx: say_health(tx, worker_id="c", name="z", reason=None, now=1))
    await dies(known, "c")
    await known.write(lambda tx: tell(tx, worker_id="a", told={"x": IDLE}, now=9))
    assert [state.name for state in await known.read(list_backends)] == ["x"]
    await known.write(lambda tx: say_health(tx, worker_id="c", name="z", reason=None, now=1))
    await known.write(lambda tx: forget_backends(tx, worker_id="a", names=["q"]))
    assert [state.name for state in await known.read(list_backends)] == ["x"]


async def test_the_first_that_tells_leads_and_the_others_share(known: Database) -> None:
    """What is told is kept to the last digit, and heard by the other; each takes its part."""
    first = (await known.write(lambda tx: tell(tx, worker_id="a", told={"x": BUSY}, now=2)))["x"]
    assert (first.leads, first.total, first.held) == (True, Total("a", 8, 1), 8)
    second = (await known.write(lambda tx: tell(tx, worker_id="b", told={"x": BUSY}, now=2)))["x"]
    assert (second.leads, second.total, second.held) == (False, Total("a", 8, 1), 0)
    assert second.others == {"a": BUSY.part._replace(held=8)}
    judged = BUSY._replace(judged=(20, 4))
    for worker, held in (("a", 10), ("b", 10)):
        heard = (await known.write(lambda tx, w=worker: tell(tx, worker_id=w, told={"x": judged}, now=2)))["x"]
        assert (heard.total, heard.held) == (Total("a", 20, 4), held)
    assert await known.read(list_windows) == [Standing(name="x", total=20, leader="a", in_flight=6, workers=2)]


async def test_a_leader_that_dies_is_followed_by_another(known: Database) -> None:
    """The one that tells next leads, with the total that stands where others are beside it."""
    await known.write(lambda tx: insert_worker(tx, worker_id="c", lease=60.0, now=1))
    for worker in "abc":
        told = {"x": BUSY._replace(judged=(30, 4) if worker == "a" else None)}
        await known.write(lambda tx, w=worker, t=told: tell(tx, worker_id=w, told=t, now=2))
    await known.write(lambda tx: tell(tx, worker_id="a", told={"x": BUSY._replace(judged=(30, 5))}, now=2))
    await dies(known, "a")
    heard = (await known.write(lambda tx: tell(tx, worker_id="c", told={"x": BUSY}, now=2)))["x"]
    assert (heard.leads, heard.total) == (True, Total("c", 30, 6))
    assert heard.others.keys() == {"b"}
    late = (await known.write(lambda tx: tell(tx, worker_id="a", told={"x": BUSY._replace(judged=(99, 9))}, now=2)))[
        "x"
    ]
    assert (late.leads, late.total.total) == (False, 30)


async def test_a_worker_that_ends_takes_its_lanes_along(known: Database) -> None:
    """In good order, and when another knows that it is alone; what is known of the backend stays."""
    await known.write(lambda tx: delete_worker(tx, worker_id="a"))
    assert [each.workers for each in await known.read(list_windows)] == [1]
    await known.write(lambda tx: void_leases(tx, worker_id="c"))
    assert [each.workers for each in await known.read(list_windows)] == [0]
    assert len(await known.read(list_backends)) == 1


async def test_who_has_nothing_new_to_tell_only_looks(known: Database) -> None:
    """Told once, an idle worker's rows are as they would be written again, until another comes or goes."""
    mine = {"a": {"x": IDLE._replace(judged=(8, 1)), "none": IDLE}, "b": {"x": IDLE}}

    async def news(worker: str) -> bool:
        heard, is_news = await known.read(lambda tx: look(tx, worker_id=worker, told=mine[worker]))
        assert heard.keys() == {"x"}
        return is_news

    for worker in "ab":
        assert await news(worker)
        await known.write(lambda tx, w=worker: tell(tx, worker_id=w, told=mine[w], now=2))
    assert not await news("a")
    assert not await news("b")
    await known.write(lambda tx: tell(tx, worker_id="b", told={"x": BUSY}, now=2))
    assert await news("a")


async def test_workers_that_tell_at_once_never_take_the_same(known: Database) -> None:
    """However they come, their parts together are no more than the total."""
    for _ in range(8):
        await asyncio.gather(
            *(known.write(lambda tx, w=w: tell(tx, worker_id=w, told={"x": BUSY}, now=2)) for w in "ab")
        )
        windows = await known.read(
            lambda tx: tx.connection.exec_driver_sql("SELECT sum(held) FROM lane WHERE backend = 'x'").scalar()
        )
        assert windows <= 8
