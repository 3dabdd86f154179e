"""What a Runner does about workers that died, backends that fall, disks that are full."""

import asyncio

import pytest

from batchmill.backends.backend import Call, Reply
from batchmill.backends.echo import EchoBackend
from batchmill.schedule.retry import Fault, Later
from batchmill.spec.states import Status
from batchmill.store.database import Transaction
from batchmill.store.slice import claim_slices, fence_slices
from batchmill.store.worker import void_leases
from engine.faulty import Falling, FaultyDatabase, Full, InterruptedDatabase
from engine.mill import LEASE, Mill, Watched, line, lines
from fakeclock import settle


async def test_a_line_that_kills_its_worker_three_times_alone_is_given_up(mill: Mill) -> None:
    """After three deaths the lines go alone; the first is the one that kills, and after three more it is an error."""
    batch_id = await mill.batch(lines(20))
    await mill.hand(mill.echo()).accept()
    alone: list[int] = []
    for death in range(6):
        deadly = Falling(mill, {}, latency=1e6)
        await mill.die(mill.hand(deadly))
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
    await mill.hand(mill.echo()).accept()
    for _ in range(3):
        await mill.die(mill.hand(mill.echo(latency=1e6)))
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
    await mill.hand(mill.echo()).accept()
    for _ in range(3):
        await mill.die(mill.hand(mill.echo(latency=1e6)))
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
    await hand.accept()
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
    await hand.accept()
    await mill.turn(hand, seconds=2)
    await mill.clock.advance(LEASE)
    sent = len(echo.calls)
    for _ in range(5):
        await hand.runner.step()
        await settle()
    assert len(echo.calls) == sent
    await mill.renew(hand)
    assert await mill.finish(hand, batch_id) is Status.COMPLETED


@pytest.mark.parametrize("once", [False, True])
async def test_a_database_without_space_ends_no_worker(mill: Mill, *, once: bool) -> None:
    """Claims, marks, commits and releases that find no space are tried again, and no line is lost or sent twice."""
    mill.database = database = FaultyDatabase(mill.database)
    echo = mill.echo(latency=1.0)
    hand = mill.hand(echo, window=4, once=once)
    batch_id = await mill.batch(lines(40))
    await hand.accept()
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
    await mill.hand(mill.echo()).accept()
    for _ in range(3):
        await mill.die(mill.hand(mill.echo(latency=1e6)))
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
    await hand.accept()
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


async def test_what_a_full_disk_let_lapse_is_not_claimed_again(mill: Mill) -> None:
    """A worker whose rows lapsed for want of space still holds its Slices: once there is space no line goes twice."""
    mill.room = room = Full()
    mill.database = database = FaultyDatabase(mill.database)
    echo = mill.echo(latency=0.5)
    hand = mill.hand(echo)
    batch_id = await mill.batch(lines(6))
    await hand.accept()
    await hand.runner.step()
    await settle()
    room.reason, database.full = "the disk is full", True
    for _ in range(20):  # longer than a lease; a renewal that finds no space counts as one
        await hand.runner.step()
        await settle()
        hand.lease.renewed(mill.clock.boot())
        await mill.clock.advance(1)
    room.reason, database.full = None, False
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert len(echo.calls) == 6


async def test_a_suspect_whose_backend_is_away_holds_nobody_up(mill: Mill) -> None:
    """A suspect line waits for its own backend; meanwhile other models' lines go side by side."""
    await mill.knows("a", "b", "long")
    suspects = await mill.batch(lines(5, model="a"))
    await mill.hand(mill.echo(models=("a",))).accept()
    for _ in range(3):
        await mill.die(mill.hand(mill.echo(latency=1e6, models=("a",))))
    away = Falling(mill, {0: [Fault.UNREACHABLE] * 99}, models=("a",), name="away:")
    long, quick = mill.echo(latency=1e6, models=("long",), name="long:"), mill.echo(models=("b",), name="quick:")
    hand = mill.hand(away, long, quick)
    await mill.batch(lines(1, model="long"))
    await mill.batch(lines(100, model="b"))
    await hand.accept()
    await mill.turn(hand, seconds=5)
    assert (away.sends, long.open, len(quick.calls)) == ([0], 1, 100)
    assert await mill.status(suspects) is Status.IN_PROGRESS


async def test_after_an_outage_a_long_call_does_not_hold_the_backend_up(mill: Mill) -> None:
    """Where the first call after an outage takes half an hour, the window fills up all the same, one by one."""
    echo = mill.echo(latency=1800.0)
    hand = mill.hand(echo)
    await mill.batch(lines(20))
    await hand.accept()
    pace = hand.lanes[0].pace
    pace.sent(0.0)
    pace.answered(Later(after=1.0, unwell=True), mill.clock.boot())
    filled = []
    for _ in range(12):
        await mill.turn(hand, seconds=5)
        await hand.scout.step()
        filled.append(echo.open)
    assert filled[:4] == [0, 1, 2, 3]
    assert filled[-1] == 8


@pytest.mark.parametrize("seconds", [LEASE, 3600.0])
@pytest.mark.parametrize("at", range(1, 6))
async def test_a_worker_that_slept_before_its_send_does_not_send(mill: Mill, at: int, seconds: float) -> None:
    """Stopped before whichever look or write of the step: if lease or window ended, the lone line stays."""

    async def sleep() -> None:
        mill.clock.uptime += seconds if seconds == LEASE else 0
        mill.clock.time += seconds

    await mill.batch(lines(5))
    await mill.hand(mill.echo()).accept()
    for _ in range(3):
        await mill.die(mill.hand(mill.echo(latency=1e6)))
    rows = mill.database
    mill.database = InterruptedDatabase(rows, at=at, happens=sleep)
    echo = mill.echo(latency=1.0)
    hand = mill.hand(echo)
    mill.database = rows
    await hand.scout.step()  # call 0; a look, a claim and its watch are 1 to 3, the mark of the lone line is 4
    await hand.runner.step()
    await settle()
    assert len(echo.calls) == (1 if at > 4 else 0)


class _Clinging(Watched):
    """A watched echo backend whose calls, once it `clings`, end when one is cancelled; that one takes a few turns."""

    clings = False

    def __init__(self, echo: EchoBackend) -> None:
        super().__init__(echo)
        self._cancelled = asyncio.Event()

    async def send(self, call: Call) -> Reply:
        """See `Backend`."""
        if not self.clings:
            return await super().send(call)
        self.calls.append(call)
        try:
            await self._cancelled.wait()
        except asyncio.CancelledError:
            self._cancelled.set()
            await settle()
            raise
        return Reply(status=200, body=b'{"choices":[]}')


async def test_a_lost_slice_sends_nothing_while_its_calls_are_cancelled(mill: Mill) -> None:
    """A call of another Slice that ends just then is followed by a line of that one, never of the one that was lost."""
    backend = _Clinging(EchoBackend(clock=mill.clock, latency=0.2))
    hand = mill.hand(backend, window=4)
    lost, kept = [
        await mill.batch(b"".join(line(f"r-{n}", f"{name} {n}") for n in range(50))) for name in ("lost", "kept")
    ]
    await hand.accept()
    for _ in range(3):
        await hand.runner.step()
        await settle()
        await mill.clock.advance(0.6)
    await hand.runner.step()
    backend.clings = True
    await mill.clock.advance(0.3)  # what was out has come back, and waits for its commit; what is out now clings

    def take_over(tx: Transaction) -> None:
        fence_slices(tx, batch_id=lost)
        assert claim_slices(tx, batch_id=lost, count=1, models=["echo"], worker_id="heir", lease=LEASE)

    await mill.database.write(take_over)
    sent = [b"lost" in call.body for call in backend.calls]
    await hand.runner.step()
    await settle()
    since = [b"lost" in call.body for call in backend.calls[len(sent) :]]
    assert any(sent[-4:])
    assert since
    assert not any(since)
    assert await mill.status(kept) is Status.IN_PROGRESS
    await hand.runner.abort()
