"""A batch is steered on its way: paused, resumed, given another window or a priority."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from batchmill.backends.backend import Call, Reply
from batchmill.backends.echo import EchoBackend
from batchmill.engine import loader
from batchmill.spec.states import Status
from batchmill.store.batch import Batch, batches_by_id
from batchmill.store.database import Transaction
from batchmill.store.slice import list_slices
from batchmill.store.steer import pause, resume, set_priority, set_window
from batchmill.store.worker import void_leases
from engine.faulty import Busy
from engine.mill import Hand, Mill, Watched, line, lines
from storage import on_disk


class Timed(Watched):
    """An echo that knows when it was asked for what; the first `slow` calls take `hangs` seconds."""

    def __init__(self, mill: Mill, *, latency: float = 0.3, slow: int = 0, hangs: float = 0.0) -> None:
        super().__init__(EchoBackend(clock=mill.clock, latency=latency))
        self._clock = mill.clock
        self._slow = slow
        self._hangs = hangs
        self.times: list[float] = []

    async def send(self, call: Call) -> Reply:
        """See `Backend`."""
        self.times.append(self._clock.boot())
        if len(self.times) <= self._slow:
            await self._clock.sleep(self._hangs)
        return await super().send(call)

    def after(self, moment: float) -> list[float]:
        """Return when it was asked after a moment of the boot clock, in seconds from there on."""
        return [time - moment for time in self.times if time > moment]


async def steer(mill: Mill, batch_id: str, change: Callable[[Transaction, Batch], bool]) -> float:
    """Change a batch as the API does; return the moment after it (boot clock)."""
    assert await mill.database.write(lambda tx: change(tx, batches_by_id(tx, batch_ids=[batch_id])[batch_id]))
    return mill.clock.boot()


async def pause_(mill: Mill, batch_id: str) -> float:
    """Pause a batch."""
    return await steer(mill, batch_id, partial(pause, now=int(mill.clock.now())))


@asynccontextmanager
async def running(mill: Mill, hand: Hand) -> AsyncIterator[None]:
    """Let a runner run by itself, as in a worker; the test moves the clock."""
    task = asyncio.create_task(hand.runner.run())
    yield
    hand.runner.halt()
    await mill.pass_time(1)
    await task
    await hand.runner.drain(seconds=0)


async def owned(mill: Mill) -> int:
    """Return how many Slices somebody holds."""
    return await mill.database.read(
        lambda tx: sum(row.owner is not None for row in tx.connection.exec_driver_sql("SELECT owner FROM slice"))
    )


async def done(mill: Mill, batch_id: str) -> int:
    """Return how many lines of a batch are recorded."""
    return (await mill.look(batch_id)).object.counts.completed


@pytest.mark.parametrize("once", [False, True])
async def test_a_paused_batch_is_not_sent_and_goes_on_where_it_was(mill: Mill, *, once: bool) -> None:
    """The last line leaves within a second, what was out is recorded, the Slices are free; then every line is there."""
    echo = Timed(mill)
    hand = mill.hand(echo, window=4, once=once)
    batch_id = await mill.batch(lines(60))
    await hand.accept()
    async with running(mill, hand):
        await mill.pass_time(1.5)
        moment = await pause_(mill, batch_id)
        await mill.pass_time(4)
        assert all(late <= 1.0 for late in echo.after(moment))
        sent = len(echo.calls)
        assert 4 <= sent < 60
        assert await done(mill, batch_id) == sent
        assert await owned(mill) == 0
        slices = await mill.database.read(lambda tx: list_slices(tx, batch_id=batch_id))
        assert not any(any(held.sent or b"") for held in slices)  # no line is in doubt
        await mill.pass_time(3)
        moment = await steer(mill, batch_id, resume)
        await mill.pass_time(1)
        assert echo.after(moment)
    assert await mill.finish(mill.hand(echo, once=once), batch_id) is Status.COMPLETED
    assert len(await mill.results(batch_id)) == 60
    assert len(echo.calls) == len({call.idempotency_key for call in echo.calls}) == 60


@on_disk
async def test_a_batch_resumed_while_calls_are_out_does_not_wait_for_them(mill: Mill) -> None:
    """Lines in hand go on within a second, although the worker had no chance yet to give the Slice back."""
    echo = Timed(mill, latency=0.1, slow=4, hangs=40.0)
    hand = mill.hand(echo, window=6)
    batch_id = await mill.batch(lines(200))
    await hand.accept()
    async with running(mill, hand):
        await mill.pass_time(1)
        moment = await pause_(mill, batch_id)
        await mill.pass_time(3)
        assert all(late <= 1.0 for late in echo.after(moment))
        assert await owned(mill) == 1
        moment = await steer(mill, batch_id, resume)
        await mill.pass_time(1)
        assert echo.after(moment)
    assert await mill.finish(mill.hand(echo), batch_id) is Status.COMPLETED


@on_disk
async def test_a_call_of_a_paused_batch_may_take_its_time(mill: Mill) -> None:
    """Nobody cuts it off: its answer is recorded when it comes, and the line is not sent again."""
    echo = Timed(mill, slow=2, hangs=36.0)
    hand = mill.hand(echo, window=2)
    batch_id = await mill.batch(lines(4))
    await hand.accept()
    await mill.turn(hand, seconds=1)
    await pause_(mill, batch_id)
    await mill.turn(hand, seconds=35)
    assert await done(mill, batch_id) == 0
    await mill.turn(hand, seconds=4)
    assert await done(mill, batch_id) == 2
    await steer(mill, batch_id, resume)
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert len(echo.calls) == 4


@on_disk
async def test_a_paused_batch_in_memory_holds_up_no_other(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a call of it is out its lines fill the memory for bodies: others are read all the same, and sent."""
    monkeypatch.setattr(loader, "_LOADED_BYTES", 1)
    echo = Timed(mill, slow=1, hangs=60.0)
    hand = mill.hand(echo, window=2)
    batch_id = await mill.batch(lines(40))
    await hand.accept()
    await mill.turn(hand, seconds=1)
    await pause_(mill, batch_id)
    await mill.turn(hand, seconds=2)
    assert await owned(mill) == 1
    other = await mill.batch(lines(3))
    await hand.accept()
    await mill.turn(hand, seconds=5)
    assert await done(mill, other) == 3
    await steer(mill, batch_id, resume)
    assert await mill.finish(hand, batch_id, seconds=120) is Status.COMPLETED


async def test_a_batch_paused_while_it_is_validated_stands_in_progress(mill: Mill) -> None:
    """Validation goes on; then nothing is sent, and the batch still says why."""
    echo = Timed(mill)
    hand = mill.hand(echo)
    batch_id = await mill.batch(lines(9))
    await pause_(mill, batch_id)
    await hand.accept()
    await mill.turn(hand, seconds=3)
    await mill.sweeper_of(hand).step()
    found = await mill.look(batch_id)
    assert (found.object.status, found.object.counts.total, len(echo.calls)) == (Status.IN_PROGRESS, 9, 0)
    assert found.waiting is not None
    assert found.waiting.startswith("paused; its window closes at ")
    assert found.object.paused_at is not None
    await steer(mill, batch_id, resume)
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert (await mill.look(batch_id)).object.paused_at is None


@on_disk
async def test_a_line_that_waits_for_its_time_waits_for_the_pause_too(mill: Mill) -> None:
    """A line that a backend has put off is given back with its Slice, and sent when the batch goes on."""
    busy = Busy(EchoBackend(clock=mill.clock))
    hand = mill.hand(busy)
    batch_id = await mill.batch(lines(5))
    await hand.accept()
    await mill.turn(hand, seconds=1)
    sent = len(busy.calls)
    assert sent
    await pause_(mill, batch_id)
    await mill.turn(hand, seconds=30)
    assert len(busy.calls) == sent
    assert await owned(mill) == 0
    await steer(mill, batch_id, resume)
    assert await mill.finish(mill.hand(mill.echo()), batch_id) is Status.COMPLETED


@on_disk
async def test_a_paused_batch_can_be_cancelled(mill: Mill) -> None:
    """What is out gets the time that a cancel gives it, and the batch ends."""
    echo = Timed(mill, slow=99, hangs=1e6)
    hand = mill.hand(echo, window=4)
    batch_id = await mill.batch(lines(9))
    await hand.accept()
    await mill.turn(hand, seconds=1)
    await pause_(mill, batch_id)
    await mill.turn(hand, seconds=35)
    assert await owned(mill) == 1
    await mill.cancel(batch_id)
    assert await mill.finish(hand, batch_id) is Status.CANCELLED
    assert (await mill.look(batch_id)).object.paused_at is None


@on_disk
async def test_a_batch_that_is_paused_until_its_window_closes_expires(mill: Mill) -> None:
    """As any other: what was done stays, the rest is batch_expired."""
    hand = mill.hand(Timed(mill), window=4)
    batch_id = await mill.batch(lines(40), window=30)
    await hand.accept()
    await mill.turn(hand, seconds=1)
    await pause_(mill, batch_id)
    await mill.turn(hand, seconds=30)
    await mill.sweeper_of(hand).step()
    assert await mill.finish(hand, batch_id) is Status.EXPIRED
    assert {entry["error"]["code"] for entry in await mill.results(batch_id, "error")} == {"batch_expired"}
    assert await mill.results(batch_id)


@on_disk
async def test_a_suspect_line_of_a_paused_batch_does_not_go_alone(mill: Mill) -> None:
    """A Slice whose owners died is not tried while its batch is paused, and holds up no other batch."""
    batch_id = await mill.batch(lines(3))
    await mill.hand(mill.echo()).accept()
    for _ in range(3):
        await mill.die(mill.hand(mill.echo(latency=1e6)))
    echo = Timed(mill, slow=1, hangs=5.0)
    hand = mill.hand(echo)
    await hand.accept()
    await mill.turn(hand, seconds=1)
    assert len(echo.times) == 1  # alone
    await pause_(mill, batch_id)
    other = await mill.batch(lines(4), organisation="theirs")
    await hand.accept()
    await mill.turn(hand, seconds=20)
    assert await done(mill, other) == 4
    assert len(echo.times) == 5
    assert await done(mill, batch_id) == 1
    await steer(mill, batch_id, resume)
    assert await mill.finish(hand, batch_id) is Status.COMPLETED


async def test_a_worker_that_dies_over_a_paused_batch_leaves_it_paused(mill: Mill) -> None:
    """Nobody takes its Slices over until it goes on."""
    batch_id = await mill.batch(lines(6))
    dead = mill.hand(Timed(mill, slow=9, hangs=1e6), window=2)
    await dead.accept()
    await mill.turn(dead, seconds=1)
    await pause_(mill, batch_id)
    await mill.database.write(lambda tx: void_leases(tx, worker_id="heir"))
    echo = Timed(mill)
    heir = mill.hand(echo)
    await heir.accept()
    await mill.turn(heir, seconds=5)
    assert echo.calls == []
    await steer(mill, batch_id, resume)
    assert await mill.finish(heir, batch_id) is Status.COMPLETED


async def test_a_longer_window_reaches_the_lines_in_hand(mill: Mill) -> None:
    """They are sent beyond the old end, by the worker that has them; no Sweeper closes it."""
    echo = Timed(mill, latency=1.0)
    hand = mill.hand(echo, window=2)
    batch_id = await mill.batch(lines(40), window=10)
    created = (await mill.look(batch_id)).object.created_at
    await hand.accept()
    await mill.turn(hand, seconds=5)
    await steer(mill, batch_id, partial(set_window, window="1h", expires_at=created + 3600))
    await mill.turn(hand, seconds=8)
    await mill.sweeper_of(hand).step()
    assert await mill.status(batch_id) is Status.IN_PROGRESS
    assert len(echo.calls) > 20
    slices = await mill.database.read(lambda tx: list_slices(tx, batch_id=batch_id))
    assert [held.epoch for held in slices] == [1]
    assert await mill.finish(hand, batch_id) is Status.COMPLETED


async def test_every_worker_sees_how_a_batch_is_steered(mill: Mill) -> None:
    """Each of two that hold Slices of it stops within a second, goes on within one, and keeps to the new end."""
    echoes = [Timed(mill, latency=0.5) for _ in range(2)]
    hands = [mill.hand(echo, window=4) for echo in echoes]
    batch_id = await mill.batch(lines(600), window=3600)
    created, born = (await mill.look(batch_id)).object.created_at, mill.clock.boot()
    await hands[0].accept()
    await hands[1].scout.step()
    async with running(mill, hands[0]), running(mill, hands[1]):
        await mill.pass_time(2)
        assert all(echo.calls for echo in echoes)
        moment = await pause_(mill, batch_id)
        await mill.pass_time(3)
        assert all(late <= 1.0 for echo in echoes for late in echo.after(moment))
        assert await owned(mill) == 0
        moment = await steer(mill, batch_id, resume)
        await mill.pass_time(1)
        assert all(echo.after(moment) for echo in echoes)
        await steer(mill, batch_id, partial(set_window, window="9s", expires_at=created + 9))
        await mill.pass_time(5)
    assert all(7.5 < max(echo.times) - born < 9.1 for echo in echoes)
    await mill.sweeper_of(hands[0]).step()
    assert await mill.finish(hands[1], batch_id) is Status.EXPIRED
    assert sum(len(echo.calls) for echo in echoes) == await done(mill, batch_id)


@on_disk
async def test_a_shorter_window_reaches_the_lines_in_hand(mill: Mill) -> None:
    """Nothing is sent at or after the new end."""
    echo = Timed(mill)
    hand = mill.hand(echo, window=1)
    batch_id = await mill.batch(lines(100))
    created, born = (await mill.look(batch_id)).object.created_at, mill.clock.boot()
    await hand.accept()
    await mill.turn(hand, seconds=3)
    await steer(mill, batch_id, partial(set_window, window="5s", expires_at=created + 5))
    await mill.turn(hand, seconds=6)
    assert 4.0 < max(echo.times) - born < 5.1
    await mill.sweeper_of(hand).step()
    assert await mill.finish(hand, batch_id) is Status.EXPIRED


@on_disk
@pytest.mark.parametrize("once", [False, True])
async def test_of_the_lines_in_hand_the_higher_priority_goes_first(mill: Mill, *, once: bool) -> None:
    """Within the organisation; another's batch goes on as before."""
    echo = Timed(mill, latency=1.0)
    hand = mill.hand(echo, window=6, once=once)
    low = await mill.batch(b"".join(line(f"low-{n}", "low") for n in range(200)))
    await hand.accept()
    await mill.turn(hand, seconds=2)
    high = await mill.batch(b"".join(line(f"high-{n}", "high") for n in range(12)))
    await steer(mill, high, partial(set_priority, priority=5))
    theirs = await mill.batch(b"".join(line(f"theirs-{n}", "theirs") for n in range(12)), organisation="theirs")
    await hand.accept()
    while await done(mill, high) < 12:
        await mill.turn(hand, seconds=0.5)
    bodies = [call.body for call in echo.calls]
    places = [place for place, body in enumerate(bodies) if b"high" in body]
    meanwhile = bodies[places[0] : places[-1]]
    assert not any(b"low" in body for body in meanwhile)
    assert once or any(b"theirs" in body for body in meanwhile)
    await steer(mill, low, partial(set_priority, priority=9))
    assert await mill.finish(hand, low, seconds=120) is Status.COMPLETED
    assert await mill.finish(hand, theirs) is Status.COMPLETED


async def test_a_pause_hides_a_batch_from_the_queue(mill: Mill) -> None:
    """Who waits behind a paused batch waits behind nobody, and priorities say who is ahead."""
    hand = mill.hand(mill.echo(latency=1e6), window=1)
    await mill.knows("echo")
    ids = [await mill.batch(lines(2)) for _ in range(4)]
    await hand.accept()
    sweeper = mill.sweeper_of(hand)

    async def said() -> list[Any]:
        await mill.clock.advance(6)
        await sweeper.step()
        return [(await mill.look(batch_id)).waiting for batch_id in ids]

    behind = [None, "queued behind 1 batch", "queued behind 2 batches", "queued behind 3 batches"]
    assert await said() == behind
    await pause_(mill, ids[0])
    await steer(mill, ids[3], partial(set_priority, priority=1))
    paused, *others = await said()
    assert paused.startswith("paused; ")
    assert others == ["queued behind 1 batch", "queued behind 2 batches", None]
