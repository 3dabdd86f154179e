"""The one lifecycle of all loops."""

import asyncio

import pytest

from batchmill.engine.loop import Bell, Doorbell, run_steps
from engine.mill import Mill
from fakeclock import FakeClock, settle
from storage import on_disk


class _Counter:
    def __init__(self, work: int) -> None:
        self.steps = 0
        self._work = work

    async def step(self) -> bool:
        self.steps += 1
        return self.steps <= self._work


class _Broken:
    async def step(self) -> bool:
        raise ValueError("broken")


async def test_a_loop_steps_while_there_is_work() -> None:
    """A loop steps without waiting while there is work, then waits for time to pass."""
    clock, counter = FakeClock(), _Counter(work=3)
    running = asyncio.create_task(run_steps(counter, bell=Bell(clock=clock), idle=1.0))
    await settle(50)
    assert counter.steps == 4
    await clock.advance(1.0)
    await settle(50)
    assert counter.steps == 5
    running.cancel()


async def test_a_bell_wakes_a_loop() -> None:
    """A rung bell saves the wait, once; rung before the wait it is not lost."""
    clock, counter = FakeClock(), _Counter(work=0)
    bell = Bell(clock=clock)
    running = asyncio.create_task(run_steps(counter, bell=bell, idle=1000.0))
    await settle(50)
    bell.ring()
    await settle(50)
    assert counter.steps == 2
    running.cancel()


async def test_a_fault_ends_a_loop() -> None:
    """What a step raises is not swallowed."""
    with pytest.raises(ValueError, match="broken"):
        await run_steps(_Broken(), bell=Bell(clock=FakeClock()), idle=1.0)


@on_disk  # PostgreSQL has no such number
async def test_a_doorbell_rings_for_every_change(mill: Mill) -> None:
    """Whoever makes it, in this process or another; where nothing has changed it is still."""
    bell = Bell(clock=mill.clock)
    door = Doorbell(database=mill.database, bells=[bell])

    async def rings() -> bool:
        assert not await door.step()
        waiting = asyncio.create_task(bell.wait(60.0))
        await settle(50)
        rung = waiting.done()
        waiting.cancel()
        return rung

    assert await rings()  # the first look knows of nothing before
    assert not await rings()
    await mill.knows("m")
    assert await rings()
    assert not await rings()
