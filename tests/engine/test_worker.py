"""A whole worker: all loops together, on the machine's clock."""

import asyncio

import pytest

from batchmill.engine.loop import Bell, Step
from batchmill.engine.worker import LeaseLost, Worker
from batchmill.spec.states import Status
from batchmill.store.database import DiskFull, Transaction
from batchmill.store.worker import has_live_worker, void_leases
from engine.mill import LEASE, Hand, Mill, lines


class _Breaks:
    """A loop that ends with a fault once it is `broken`."""

    broken = False

    async def step(self) -> bool:
        """See `Step`."""
        if self.broken:
            raise DiskFull
        return False


def _worker(mill: Mill, hand: Hand, *more: Step, alone: bool = True) -> Worker:
    bell = Bell(clock=mill.clock)
    return Worker(
        database=mill.database,
        clock=mill.clock,
        worker_id=hand.worker_id,
        lease=hand.lease,
        alone=alone,
        metrics=hand.metrics,
        runner=hand.runner,
        loops=tuple((loop, bell, 0.25) for loop in (hand.validator, hand.finalizer, mill.sweeper, hand.scout, *more)),
    )


async def test_a_worker_takes_batches_to_their_end(mill: Mill) -> None:
    """Three batches of two organisations are completed, and the worker ends in good order."""
    ids = [await mill.batch(lines(300), organisation=name) for name in ("a", "b", "a")]
    stopping = asyncio.Event()
    running = asyncio.create_task(_worker(mill, mill.hand(mill.echo())).run(stopping=stopping, drain=5))
    for _ in range(1000):
        await mill.pass_time(0.05, step=0.01)
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
        await mill.pass_time(0.05, step=0.005)
    assert mill.clock.uptime - before < LEASE
    stopping.set()
    await running


async def test_a_worker_without_a_lease_ends(mill: Mill) -> None:
    """A worker whose leases were ended by another stops with a fault."""
    running = asyncio.create_task(_worker(mill, mill.hand(mill.echo())).run(stopping=asyncio.Event(), drain=5))

    def usurp(tx: Transaction) -> None:
        void_leases(tx, worker_id="another")

    while not running.done():  # at first it may not have begun yet
        await mill.database.write(usurp)
        await mill.pass_time(0.5)
    with pytest.raises(LeaseLost):
        await running


async def test_a_worker_that_slept_for_a_lease_ends(mill: Mill) -> None:
    """A worker that wakes after a lease without a renewal ends, although its row still stands: it may be late."""
    running = asyncio.create_task(_worker(mill, mill.hand(mill.echo())).run(stopping=asyncio.Event(), drain=5))
    while not running.done():  # its first renewal may not have begun to wait when it is stopped first
        await mill.pass_time(0.5)
        mill.clock.uptime += LEASE  # it was stopped
        await mill.clock.advance(LEASE / 3)
    with pytest.raises(LeaseLost, match="not renewed"):
        await running


async def test_a_worker_that_ended_with_a_fault_sends_nothing_more(mill: Mill) -> None:
    """What was out is given up with the worker: `batchmill run` goes on with another one in the same process."""
    echo, breaks = mill.echo(latency=1.0), _Breaks()
    await mill.batch(lines(40))
    running = asyncio.create_task(
        _worker(mill, mill.hand(echo, window=2), breaks).run(stopping=asyncio.Event(), drain=5)
    )
    while not echo.calls:
        await mill.pass_time(0.05)
    breaks.broken = True
    while not running.done():
        await mill.pass_time(0.05)
    with pytest.raises(DiskFull):
        await running
    assert echo.open == 0
    sent = len(echo.calls)
    await mill.pass_time(5)
    assert len(echo.calls) == sent
