"""Backends that come and go while a worker runs."""

import asyncio
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from batchmill.backends.echo import EchoBackend
from batchmill.engine.lanes import Lane
from batchmill.schedule.pace import Pace
from batchmill.spec.states import Status
from batchmill.store.model import list_backends
from batchmill.store.roster import Entry, add_backend, drain_backend, remove_backend
from batchmill.store.worker import insert_worker
from engine.faulty import FaultyDatabase
from engine.mill import LEASE, Hand, Mill, Watched, lines
from fakeclock import settle

ADDED = Entry(name="added:", url="added:", since=1)


class Closing(Watched):
    """The echo backend, and whether it was closed."""

    closed = 0
    answers: asyncio.Event | None = None

    async def models(self) -> tuple[str, ...]:
        """See `Backend`; once it may answer."""
        if self.answers is not None:
            await self.answers.wait()
        return await super().models()

    async def close(self) -> None:
        """See `Backend`."""
        self.closed += 1


class Shop:
    """Makes lanes of what the operator says, as `assemble` does."""

    def __init__(self, mill: Mill) -> None:
        self._mill = mill
        self.latency = 0.0
        self.made: list[Closing] = []

    def make(self, entry: Entry) -> Lane:
        """Return a lane over an echo backend that has this name."""
        if entry.key_env is not None:
            raise ValueError(f"the environment variable {entry.key_env}, which should hold a key, is not set")
        echo = EchoBackend(clock=self._mill.clock, latency=self.latency, models=entry.models or ("echo",))
        self.made.append(Closing(echo, name=entry.name))
        return Lane(backend=self.made[-1], pace=Pace(window=entry.window or 8))


@pytest.fixture
def shop(mill: Mill) -> Shop:
    """A shop for this mill's workers."""
    return Shop(mill)


async def say(mill: Mill, entry: Entry) -> None:
    """Let the operator add a backend."""
    await mill.database.write(lambda tx: add_backend(tx, entry))


async def drain(mill: Mill, name: str, *, draining: bool = True) -> None:
    """Let the operator drain a backend, or let it have lines again."""
    assert await mill.database.write(lambda tx: drain_backend(tx, name=name, draining=draining, now=2))


async def look(*hands: Hand) -> None:
    """Let workers look what is said, and ask backends that are new."""
    for hand in hands:
        await hand.roster.step()
        await hand.scout.step()


async def names(mill: Mill) -> list[str]:
    """Return the names of the backends that the rows know."""
    return [state.name for state in await mill.database.read(list_backends)]


async def test_an_added_backend_gets_lines(mill: Mill, shop: Shop) -> None:
    """A worker that has none serves a batch by one that comes later; it has a row, and its models are known."""
    hand = mill.hand(make_lane=shop.make)
    batch_id = await mill.batch(lines(30, "late"))
    await look(hand)
    await mill.knows("late")
    await mill.turn(hand, seconds=1)
    await say(mill, replace(ADDED, models=("late",)))
    await look(hand)
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert len(shop.made[0].calls) == 30
    assert await names(mill) == ["added:"]


async def test_a_drained_backend_ends_what_it_has_and_gets_no_more(mill: Mill, shop: Shop) -> None:
    """The lines that stood ready for it go to another; when nothing is in flight it is closed and its row goes."""
    shop.latency = 2.0
    hand = mill.hand(mill.echo(latency=2.0, name="given:"), make_lane=shop.make)
    await say(mill, ADDED)
    await look(hand)
    batch_id = await mill.batch(lines(60))
    await hand.accept()
    await mill.turn(hand, seconds=1)
    assert shop.made[0].open == 8
    await drain(mill, "added:")
    await look(hand)
    before = len(shop.made[0].calls)
    await mill.turn(hand, seconds=1.5)
    assert (shop.made[0].open, shop.made[0].closed) == (0, 0)
    await look(hand)
    assert (shop.made[0].closed, await names(mill)) == (1, ["given:"])
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert len(shop.made[0].calls) == before
    names_of = ("given:", "added:")
    assert len(await mill.results(batch_id)) == 60
    shown = [hand.metrics.registry.get_sample_value("batchmill_window", {"backend": name}) for name in names_of]
    assert shown == [8, None]


async def test_a_backend_that_is_drained_no_more_is_made_anew(mill: Mill, shop: Shop) -> None:
    """Or goes on, where it had not ended yet."""
    hand = mill.hand(make_lane=shop.make)
    await say(mill, ADDED)
    await look(hand)
    (lane,) = hand.present
    lane.pace.sent(0.0)
    await drain(mill, "added:")
    await look(hand)
    assert hand.open_models == set()
    await drain(mill, "added:", draining=False)
    await look(hand)
    assert hand.open_models == {"echo"}
    assert len(shop.made) == 1


async def test_a_backend_of_the_settings_is_drained_and_comes_back(mill: Mill, shop: Shop) -> None:
    """It is not closed, since it may come back: the very lane, with what it had found."""
    given = Closing(EchoBackend(clock=mill.clock), name="given:")
    hand = mill.hand(given, make_lane=shop.make)
    await look(hand)
    for _ in range(2):
        await drain(mill, "given:")
        await look(hand)
        assert (hand.open_models, hand.present, await names(mill)) == (set(), [], [])
        await mill.clock.advance(1)
        await drain(mill, "given:", draining=False)
        await look(hand)
        assert (hand.open_models, hand.present, await names(mill)) == ({"echo"}, list(hand.lanes), ["given:"])
    assert (given.closed, shop.made) == (0, [])


async def test_a_backend_that_is_removed_goes(mill: Mill, shop: Shop) -> None:
    """As one that is drained; one of the settings that something was said of is as the settings say."""
    hand = mill.hand(mill.echo(name="given:"), make_lane=shop.make)
    await say(mill, ADDED)
    await look(hand)
    await drain(mill, "given:")
    await mill.database.write(lambda tx: remove_backend(tx, name="added:"))
    await look(hand)
    assert (await names(mill), shop.made[0].closed) == ([], 1)
    await mill.database.write(lambda tx: remove_backend(tx, name="given:"))
    await look(hand)
    assert await names(mill) == ["given:"]


async def test_a_backend_that_is_added_anew_becomes_another(mill: Mill, shop: Shop) -> None:
    """The old one drains first: two never send side by side under one name. The same said again changes nothing."""
    hand = mill.hand(make_lane=shop.make)
    await say(mill, ADDED)
    await look(hand)
    await say(mill, replace(ADDED, since=7))
    await look(hand)
    assert len(shop.made) == 1
    (lane,) = hand.present
    lane.pace.sent(0.0)
    await say(mill, replace(ADDED, models=("other",)))
    await look(hand)
    assert (len(shop.made), hand.open_models) == (1, set())
    lane.pace.withdrawn()
    await look(hand)
    await look(hand)
    assert (len(shop.made), shop.made[0].closed, hand.open_models) == (2, 1, {"other"})


async def test_a_backend_that_cannot_be_made_says_why(mill: Mill, shop: Shop) -> None:
    """In its row and once in the log; when the operator takes it back the row goes."""
    hand = mill.hand(make_lane=shop.make)
    await say(mill, replace(ADDED, key_env="NO_KEY"))
    with capture_logs() as logged:
        await look(hand)
        await look(hand)
    assert [entry["event"] for entry in logged] == ["backend not added"]
    (state,) = await mill.database.read(list_backends)
    assert (state.well, "NO_KEY" in (state.reason or "")) == (False, True)
    await say(mill, ADDED)
    await look(hand)
    (state,) = await mill.database.read(list_backends)
    assert state.well
    await say(mill, replace(ADDED, key_env="NO_KEY"))
    for _ in range(3):
        await look(hand)
    await mill.database.write(lambda tx: remove_backend(tx, name="added:"))
    await look(hand)
    assert await names(mill) == []


async def test_a_backend_goes_when_no_worker_has_it_any_more(mill: Mill, shop: Shop) -> None:
    """Two workers drain it, each in its time; the row is there until the second is done."""
    hands = [mill.hand(mill.echo(name="given:"), make_lane=shop.make) for _ in range(2)]
    for hand in hands:
        await mill.database.write(lambda tx, hand=hand: insert_worker(tx, worker_id=hand.worker_id, lease=LEASE, now=1))
    await look(*hands)
    hands[1].lanes[0].pace.sent(0.0)
    await drain(mill, "given:")
    await look(*hands)
    assert await names(mill) == ["given:"]
    hands[1].lanes[0].pace.withdrawn()
    await look(*hands)
    assert await names(mill) == []


async def test_a_full_database_stops_no_drain(mill: Mill, shop: Shop) -> None:
    """A row that could not be taken away stays behind, and is logged."""
    mill.database = database = FaultyDatabase(mill.database)
    hand = mill.hand(mill.echo(name="given:"), make_lane=shop.make)
    await look(hand)
    await drain(mill, "given:")
    database.full = True
    with capture_logs() as logged:
        await hand.roster.step()
    assert "not kept: the disk is full" in [entry["event"] for entry in logged]
    assert hand.present == []


async def test_a_backend_that_goes_while_it_is_asked_is_forgotten(mill: Mill, shop: Shop) -> None:
    """What it answers then says nothing any more."""
    hand = mill.hand(make_lane=shop.make)
    await say(mill, ADDED)
    await hand.roster.step()
    shop.made[0].answers = asyncio.Event()
    asking = asyncio.create_task(hand.scout.step())
    await settle()
    await mill.database.write(lambda tx: remove_backend(tx, name="added:"))
    await hand.roster.step()
    shop.made[0].answers.set()
    await asking
    assert await names(mill) == []
    assert hand.router.models() == frozenset()
