"""What a Runner does about workers that died, backends that fall, disks that are full."""

import pytest

from batchmill.backends.backend import Call, Reply
from batchmill.backends.echo import EchoBackend
from batchmill.schedule.retry import Fault
from batchmill.spec.states import Status
from batchmill.store.worker import void_leases
from engine.faulty import FaultyDatabase
from engine.mill import LEASE, Hand, Mill, Watched, lines
from fakeclock import settle


class Falling(Watched):
    """A watched echo backend that answers some lines, by their number in the input, with faults first."""

    def __init__(self, mill: Mill, faults: dict[int, list[Fault]], *, latency: float = 0.0) -> None:
        super().__init__(EchoBackend(clock=mill.clock, latency=latency))
        self._faults = faults
        self.sends: list[int] = []

    async def send(self, call: Call) -> Reply:
        """See `Backend`."""
        number = int(call.body.partition(b"hi ")[2].partition(b'"')[0])
        self.sends.append(number)
        faults = self._faults.get(number, [])
        reply = await super().send(call)
        return Reply(fault=faults.pop(0), detail="felled") if faults else reply


class Full:
    """Room that is there or not, as a test says."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.given = 0

    def short(self) -> str | None:
        """See `Room`."""
        return self.reason

    def keep(self) -> None:
        """See `Room`."""

    def give(self) -> None:
        """See `Room`."""
        self.given += 1


async def _accept(hand: Hand) -> None:
    await hand.scout.step()
    while await hand.validator.step():
        pass


async def _die(mill: Mill, hand: Hand) -> None:
    """Let a worker send what it has and die before anything is durable."""
    await hand.scout.step()
    await hand.runner.step()
    await settle()
    await mill.database.write(lambda tx: void_leases(tx, worker_id="heir"))


async def test_a_line_that_kills_its_worker_three_times_alone_is_given_up(mill: Mill) -> None:
    """After three deaths the lines go alone; the first is the one that kills, and after three more it is an error."""
    batch_id = await mill.batch(lines(20))
    await _accept(mill.hand(mill.echo()))
    alone: list[int] = []
    for death in range(6):
        deadly = Falling(mill, {}, latency=1e6)
        await _die(mill, mill.hand(deadly))
        assert len(deadly.sends) == (8 if death < 3 else 1)
        alone += deadly.sends if death >= 3 else []
    assert alone == [0, 0, 0]
    last = mill.echo()
    assert await mill.finish(mill.hand(last), batch_id) is Status.COMPLETED
    assert len(last.calls) == 19
    (given_up,) = await mill.results(batch_id, "error")
    assert (given_up["custom_id"], given_up["error"]["code"]) == ("r-0", "worker_crashed")
    assert len(await mill.results(batch_id)) == 19


async def test_lines_go_alone_only_as_long_as_they_are_suspects(mill: Mill) -> None:
    """A Slice whose owners died for other reasons costs a window of lone lines; then they go side by side again."""
    batch_id = await mill.batch(lines(40))
    await _accept(mill.hand(mill.echo()))
    for _ in range(3):
        await _die(mill, mill.hand(mill.echo(latency=1e6)))
    echo = mill.echo(latency=1.0)
    hand = mill.hand(echo, window=4)
    await hand.scout.step()
    await mill.turn(hand, seconds=3.5)
    assert (echo.most_open, len(echo.calls)) == (1, 4)
    await mill.turn(hand, seconds=3)
    assert echo.most_open == 4
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert len(echo.calls) == 40


async def test_a_lone_line_that_comes_back_undone_is_not_counted(mill: Mill) -> None:
    """A line that is put off while alone leaves no mark behind: a later death is not laid at its door."""
    batch_id = await mill.batch(lines(1))
    await _accept(mill.hand(mill.echo()))
    for _ in range(3):
        await _die(mill, mill.hand(mill.echo(latency=1e6)))
    for _ in range(4):  # each comes back with a fault, and its worker dies while the line waits
        felled = Falling(mill, {0: [Fault.UNREACHABLE]})
        hand = mill.hand(felled)
        await hand.scout.step()
        await hand.runner.step()
        await settle()
        await hand.runner.step()
        await mill.database.write(lambda tx: void_leases(tx, worker_id="heir"))
        assert felled.sends == [0]
    assert await mill.finish(mill.hand(mill.echo()), batch_id) is Status.COMPLETED
    assert await mill.results(batch_id, "error") == []


async def test_a_bad_line_among_good_ones_uses_up_five_attempts(mill: Mill) -> None:
    """While others succeed a reset costs an attempt; at the fifth the line is given up, and nobody waited for it."""
    felled = Falling(mill, {3: [Fault.RESET] * 99}, latency=1.0)
    hand = mill.hand(felled, window=2)
    batch_id = await mill.batch(lines(60))
    assert await mill.finish(hand, batch_id, seconds=120) is Status.COMPLETED
    assert felled.sends.count(3) == 5
    assert len(felled.sends) == 64
    (given_up,) = await mill.results(batch_id, "error")
    assert given_up["error"]["code"] == "upstream_unavailable"


async def test_an_outage_that_looks_like_resets_costs_no_line_anything(mill: Mill) -> None:
    """When nothing succeeds the lines wait and go one by one as probes; when it is over all of them are done."""
    faults = {number: [Fault.RESET] * 2 for number in range(30)}
    felled = Falling(mill, faults)
    hand = mill.hand(felled)
    batch_id = await mill.batch(lines(30))
    await _accept(hand)
    for _ in range(4000):
        await hand.scout.step()
        await hand.runner.step()
        await settle()
        if await mill.status(batch_id) is Status.FINALIZING:
            break
        await mill.renew(hand)
        await mill.clock.advance(0.25)
    await hand.finalizer.step()
    assert (await mill.look(batch_id)).object.counts.completed == 30


async def test_a_worker_whose_lease_lapsed_sends_nothing(mill: Mill) -> None:
    """A worker that wakes after a lease claims and sends nothing, whatever the rows say, until it has renewed."""
    echo = mill.echo(latency=1.0)
    hand = mill.hand(echo, window=2)
    batch_id = await mill.batch(lines(40))
    await _accept(hand)
    await mill.turn(hand, seconds=2)
    await mill.clock.advance(LEASE)
    sent = len(echo.calls)
    for _ in range(5):
        await hand.runner.step()
        await settle()
    assert len(echo.calls) == sent
    await mill.renew(hand)
    assert await mill.finish(hand, batch_id) is Status.COMPLETED


async def test_a_line_of_unknown_outcome_is_not_sent_twice_if_so_asked(mill: Mill) -> None:
    """With on_unknown_outcome = fail what a dead worker may have sent is an error, and the rest is done."""
    batch_id = await mill.batch(lines(30))
    await _accept(mill.hand(mill.echo()))
    dead = Falling(mill, {}, latency=1e6)
    await _die(mill, mill.hand(dead, once=True))
    assert len(dead.sends) == 8
    heir = Falling(mill, {10: [Fault.TIMEOUT], 11: [Fault.UNREACHABLE]})
    hand = mill.hand(heir, once=True)
    await hand.scout.step()
    for _ in range(40):
        await hand.scout.step()
        await mill.turn(hand, seconds=0.5)
    await hand.finalizer.step()
    assert await mill.status(batch_id) is Status.COMPLETED
    unknown = {r["custom_id"]: r["error"]["code"] for r in await mill.results(batch_id, "error")}
    assert unknown == {f"r-{n}": "outcome_unknown" for n in (*dead.sends, 10)}
    assert not set(dead.sends) & set(heir.sends)
    assert heir.sends.count(10) == 1
    assert len(await mill.results(batch_id)) == 21


async def test_a_drained_worker_leaves_no_line_in_doubt(mill: Mill) -> None:
    """With on_unknown_outcome = fail a worker that ends in good order leaves lines that can all be sent."""
    first, second = mill.echo(latency=1.0), mill.echo()
    hand = mill.hand(first, window=4, once=True)
    batch_id = await mill.batch(lines(40))
    await _accept(hand)
    await mill.turn(hand, seconds=2.5)
    hand.runner.halt()
    await mill.clock.advance(2)
    await hand.runner.drain(seconds=0)
    assert await mill.finish(mill.hand(second, once=True), batch_id) is Status.COMPLETED
    assert await mill.results(batch_id, "error") == []
    assert len(first.calls) + len(second.calls) == 40


@pytest.mark.parametrize("once", [False, True])
async def test_a_database_without_space_ends_no_worker(mill: Mill, *, once: bool) -> None:
    """Claims, marks, commits and releases that find no space are tried again, and no line is lost or sent twice."""
    mill.database = database = FaultyDatabase(mill.database)
    echo = mill.echo(latency=1.0)
    hand = mill.hand(echo, window=4, once=once)
    batch_id = await mill.batch(lines(40))
    await _accept(hand)
    for full in (True, False, True, False, True):
        database.full = full
        for _ in range(15):  # nobody can take a lease over while nothing can be written
            await hand.runner.step()
            await settle()
            hand.lease.renewed(mill.clock.boot())
            await mill.clock.advance(0.1)
    database.full = False
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert len(echo.calls) == 40


async def test_a_lone_line_is_not_lost_where_its_mark_finds_no_space(mill: Mill) -> None:
    """A suspect line goes only with its mark: without space for that it waits, and goes later."""
    batch_id = await mill.batch(lines(5))
    await _accept(mill.hand(mill.echo()))
    for _ in range(3):
        await _die(mill, mill.hand(mill.echo(latency=1e6)))
    mill.database = database = FaultyDatabase(mill.database)
    echo = mill.echo()
    hand = mill.hand(echo)
    await hand.scout.step()
    await hand.runner._claim()
    database.full = True
    for _ in range(5):
        await hand.runner.step()
        await settle()
    assert echo.calls == []
    database.full = False
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert len(echo.calls) == 5


async def test_results_wait_in_memory_while_the_disk_is_full(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit without space loses nothing and sends nothing again: sending stops, and goes on when there is space."""
    mill.room = room = Full()
    echo = mill.echo(latency=0.5)
    hand = mill.hand(echo, window=4)
    batch_id = await mill.batch(lines(30))
    await _accept(hand)
    await mill.turn(hand, seconds=1.2)

    def no_space(_key: str) -> None:
        room.reason = "the disk is full"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(mill.blobs, "writer", no_space)
        await mill.turn(hand, seconds=5)
        sent = len(echo.calls)
        await mill.turn(hand, seconds=5)
        assert len(echo.calls) == sent < 30
        assert room.given > 1
    room.reason = None
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert len(echo.calls) == 30
