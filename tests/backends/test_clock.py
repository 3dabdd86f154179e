import asyncio
import time

from batchmill.clock import Clock, SystemClock
from fakeclock import FakeClock, settle


def test_the_systems_clock_tells_the_time() -> None:
    """`now` is Unix time; `boot` never goes back."""
    clock: Clock = SystemClock()
    before = time.time()

    assert before <= clock.now() <= time.time()
    assert clock.boot() <= clock.boot()


async def test_the_systems_clock_sleeps() -> None:
    """A sleep takes at least its seconds."""
    clock = SystemClock()
    began = clock.boot()
    await clock.sleep(0.02)

    assert clock.boot() - began >= 0.019


async def test_a_fake_clock_wakes_sleepers_in_order() -> None:
    """Each sleeper wakes at its own moment, also one that goes to sleep again on the way."""
    clock: FakeClock = FakeClock(now=100.0, boot=5.0)
    seam: Clock = clock
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, *naps: float) -> None:
        for nap in naps:
            await seam.sleep(nap)
            woken.append((name, seam.boot()))

    tasks = [asyncio.create_task(sleeper("b", 2.0)), asyncio.create_task(sleeper("a", 1.0, 2.0))]
    await clock.advance(2.5)
    assert woken == [("a", 6.0), ("b", 7.0)]
    assert (clock.now(), clock.boot(), clock.sleeping) == (102.5, 7.5, 1)
    await clock.advance(0.5)
    await asyncio.gather(*tasks)
    assert woken[-1] == ("a", 8.0)


async def test_a_fake_clock_forgets_the_cancelled() -> None:
    """A cancelled sleeper is not woken and does not count."""
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(1.0))
    await settle()
    assert clock.sleeping == 1
    task.cancel()
    await settle()
    assert clock.sleeping == 0
    await clock.advance(2.0)
    await clock.sleep(0)
