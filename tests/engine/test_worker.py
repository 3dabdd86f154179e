"""A whole worker: all loops together, on the machine's clock."""

import asyncio

import pytest

from batchmill.engine.loop import Bell
from batchmill.engine.worker import LeaseLost, Worker
from batchmill.spec.states import Status
from batchmill.store.database import Transaction
from batchmill.store.worker import has_live_worker, void_leases
from engine.mill import LEASE, Hand, Mill, lines
from fakeclock import settle


def _worker(mill: Mill, hand: Hand, *, alone: bool = True) -> Worker:
    bell = Bell(clock=mill.clock)
    return Worker(
        database=mill.database,
        clock=mill.clock,
        worker_id=hand.worker_id,
        lease=hand.lease,
        alone=alone,
        metrics=hand.metrics,
        runner=hand.runner,
        loops=tuple((loop, bell, 0.25) for loop in (hand.validator, hand.finalizer, mill.sweeper, hand.scout)),
    )


async def _pass_time(mill: Mill, seconds: float, step: float = 0.05) -> None:
    """Let the clock run while threads do their work; the smaller the step, the more real time a second of it is."""
    for _ in range(round(seconds / step)):
        await mill.clock.advance(step)
        await settle()
        await mill.database.write(has_live_worker)  # the writer's thread is real: its time is not ahead of the clock


async def test_a_worker_takes_batches_to_their_end(mill: Mill) -> None:
    """Three batches of two organisations are completed, and the worker ends in good order."""
    ids = [await mill.batch(lines(300), organisation=name) for name in ("a", "b", "a")]
    stopping = asyncio.Event()
    running = asyncio.create_task(_worker(mill, mill.hand(mill.echo())).run(stopping=stopping, drain=5))
    for _ in range(1000):
        await _pass_time(mill, 0.05, step=0.01)
        if [await mill.status(batch_id) for batch_id in ids] == [Status.COMPLETED] * 3:
            break
    assert [await mill.status(batch_id) for batch_id in ids] == [Status.COMPLETED] * 3
    assert await mill.database.read(has_live_worker)
    stopping.set()
    await running
    assert not await mill.database.read(has_live_worker)


async def test_a_worker_alone_waits_for_no_lease(mill: Mill) -> None:
    """A worker that is alone voids what a dead one held, and goes on at once."""
    dead, heir = mill.hand(mill.echo(latency=1.0)), mill.hand(mill.echo())
    batch_id = await mill.batch(lines(20))
    await dead.scout.step()
    await dead.validator.step()
    await dead.runner.step()
    stopping = asyncio.Event()
    before = mill.clock.uptime
    running = asyncio.create_task(_worker(mill, heir).run(stopping=stopping, drain=5))
    while await mill.status(batch_id) is not Status.COMPLETED:
        await _pass_time(mill, 0.05, step=0.005)
    assert mill.clock.uptime - before < LEASE
    stopping.set()
    await running


async def test_a_worker_without_a_lease_ends(mill: Mill) -> None:
    """A worker whose leases were ended by another stops with a fault."""
    running = asyncio.create_task(_worker(mill, mill.hand(mill.echo())).run(stopping=asyncio.Event(), drain=5))
    await _pass_time(mill, 0.5)

    def usurp(tx: Transaction) -> None:
        void_leases(tx, worker_id="another")

    await mill.database.write(usurp)
    for _ in range(100):
        if not running.done():
            await _pass_time(mill, 0.5)
    with pytest.raises(LeaseLost):
        await running


async def test_a_worker_that_slept_for_a_lease_ends(mill: Mill) -> None:
    """A worker that wakes after a lease without a renewal ends, although its row still stands: it may be late."""
    running = asyncio.create_task(_worker(mill, mill.hand(mill.echo())).run(stopping=asyncio.Event(), drain=5))
    await _pass_time(mill, 0.5)
    mill.clock.uptime += LEASE  # it was stopped
    await mill.clock.advance(LEASE / 3)
    with pytest.raises(LeaseLost, match="not renewed"):
        await running
