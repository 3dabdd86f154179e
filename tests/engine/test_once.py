"""What is never sent twice with on_unknown_outcome = "fail", and what that costs."""

import asyncio

import pytest

from batchmill.backends.echo import EchoBackend
from batchmill.schedule.retry import Fault
from batchmill.spec.states import Status
from batchmill.store.worker import has_live_worker, void_leases
from engine.faulty import Busy, Falling
from engine.mill import Mill, lines
from fakeclock import settle


async def test_a_line_of_unknown_outcome_is_not_sent_twice_if_so_asked(mill: Mill) -> None:
    """With on_unknown_outcome = fail what a dead worker may have sent is an error, and the rest is done."""
    batch_id = await mill.batch(lines(30))
    await mill.hand(mill.echo()).accept()
    dead = Falling(mill, {}, latency=1e6)
    await mill.die(mill.hand(dead, once=True))
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
    await hand.accept()
    await mill.turn(hand, seconds=2.5)
    hand.runner.halt()
    await mill.clock.advance(2)
    await hand.runner.drain(seconds=0)
    assert await mill.finish(mill.hand(second, once=True), batch_id) is Status.COMPLETED
    assert await mill.results(batch_id, "error") == []
    assert len(first.calls) + len(second.calls) == 40


async def test_a_slow_model_does_not_keep_another_from_being_announced(mill: Mill) -> None:
    """Announced are as many lines as could go now, model by model: one whose window is full starves no other."""
    slow = mill.echo(latency=1e6, models=("a",), name="slow:")
    quick = mill.echo(models=("b",), name="quick:")
    await mill.knows("a", "b")
    hand = mill.hand(slow, quick, once=True)
    await mill.batch(lines(200, model="a"))
    await mill.batch(lines(20, model="b"))
    await hand.accept()
    await mill.turn(hand, seconds=5)
    assert (len(slow.calls), len(quick.calls)) == (8, 20)


async def test_a_line_that_was_refused_has_not_run(mill: Mill) -> None:
    """A 429 is an answer: a death while all lines wait for their time leaves none of them in doubt."""
    busy = Busy(EchoBackend(clock=mill.clock, latency=0.05))
    batch_id = await mill.batch(lines(50))
    await mill.hand(mill.echo()).accept()
    dead = mill.hand(busy, window=4, once=True)
    await dead.scout.step()
    await mill.turn(dead, seconds=10)
    assert (len(busy.calls), busy.open) == (50, 0)
    await mill.database.write(lambda tx: void_leases(tx, worker_id="heir"))
    assert await mill.finish(mill.hand(mill.echo(), once=True), batch_id) is Status.COMPLETED
    assert await mill.results(batch_id, "error") == []


@pytest.mark.parametrize("once", [False, True])
async def test_a_runner_whose_lines_are_all_out_waits(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, *, once: bool
) -> None:
    """While the clock stands still and nothing comes back, a runner takes no step."""
    hand = mill.hand(mill.echo(latency=1e6), once=once)
    await mill.batch(lines(3))
    await hand.accept()
    steps: list[float] = []
    step = hand.runner.step

    async def counted() -> None:
        steps.append(mill.clock.boot())
        await step()

    monkeypatch.setattr(hand.runner, "step", counted)
    running = asyncio.create_task(hand.runner.run())
    for _ in range(50):
        await settle()
        await mill.database.write(has_live_worker)  # the threads of a step are real
    assert 0 < len(steps) < 10
    hand.runner.halt()
    await mill.clock.advance(1)
    await running
    await hand.runner.abort()
