"""Two that move the same batch at the same moment: each race has one outcome, and no line is lost in it."""

import asyncio
from collections.abc import Awaitable, Sequence

import pytest

from batchmill.spec.states import Event, Status
from batchmill.store.batch import advance
from engine.faulty import InterruptedDatabase
from engine.mill import LEASE, Hand, Mill, lines

COUNT = 300  # two Slices


async def drained(mill: Mill, hand: Hand, *, window: int = 3600) -> str:
    """Return a batch whose lines are all done."""
    batch_id = await mill.batch(lines(COUNT), window=window)
    await hand.scout.step()
    await hand.validator.step()
    while await mill.status(batch_id) is not Status.FINALIZING:
        await mill.turn(hand, seconds=0.1)
    return batch_id


async def check(mill: Mill, batch_id: str) -> None:
    """Assert that every line is in one of the files, once, and that counts and files agree."""
    facts = (await mill.look(batch_id)).object
    output, error = await mill.results(batch_id), await mill.results(batch_id, "error")
    ids = [line["custom_id"] for line in output + error]
    assert sorted(ids) == sorted(f"r-{n}" for n in range(COUNT))
    assert (facts.counts.completed, facts.counts.failed) == (len(output), len(error))
    assert (facts.output_file_id is None, facts.error_file_id is None) == (not output, not error)
    final = (facts.completed_at, facts.expired_at, facts.cancelled_at, facts.failed_at)
    assert sum(moment is not None for moment in final) == 1


async def together(*moves: Awaitable[object]) -> Sequence[object]:
    """Let these happen at once."""
    return await asyncio.gather(*moves)


@pytest.mark.parametrize("at", range(5))
async def test_a_cancel_before_the_seal_wins(mill: Mill, at: int) -> None:
    """Before whichever of the Finalizer's looks and moves a cancel comes, the batch is cancelled with every result."""
    batch_id = await drained(mill, mill.hand(mill.echo()))
    rows = mill.database
    mill.database = InterruptedDatabase(rows, at=at, happens=lambda: mill.cancel(batch_id))
    hand = mill.hand(mill.echo())
    mill.database = rows

    while await hand.finalizer.step():
        pass
    assert await mill.status(batch_id) is Status.CANCELLED
    await check(mill, batch_id)
    assert len(await mill.results(batch_id)) == COUNT


async def test_a_cancel_after_the_seal_is_refused(mill: Mill) -> None:
    """Once sealed a batch is completed, whatever comes."""
    hand = mill.hand(mill.echo())
    batch_id = await drained(mill, hand)
    assert await hand.finalizer.step()
    with pytest.raises(ValueError, match="knows no cancel"):
        await mill.cancel(batch_id)
    assert await mill.status(batch_id) is Status.COMPLETED
    await check(mill, batch_id)


async def test_a_window_that_passes_while_finalizing(mill: Mill) -> None:
    """A batch that was drained in time is completed, however late its files are written."""
    hand = mill.hand(mill.echo())
    batch_id = await drained(mill, hand, window=60)
    await mill.clock.advance(3600)
    await together(mill.sweeper.step(), hand.finalizer.step())
    assert await mill.status(batch_id) is Status.COMPLETED
    await check(mill, batch_id)


async def test_a_window_and_the_last_commit(mill: Mill) -> None:
    """A batch drained at the very second of its deadline is swept or drained: one move, and completed."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(COUNT), window=1)
    await hand.scout.step()
    await hand.validator.step()
    now = int(mill.clock.now())

    async def move(event: Event) -> bool:
        return await mill.database.write(
            lambda tx: advance(tx, batch_id=batch_id, status=Status.IN_PROGRESS, event=event, now=now + 1)
        )

    moved = await together(move(Event.DRAINED), move(Event.WINDOW_PASSED), move(Event.DRAINED))
    assert sorted(map(bool, moved)) == [False, False, True]
    assert await hand.finalizer.step()
    assert await mill.status(batch_id) is Status.EXPIRED
    await check(mill, batch_id)


async def test_a_window_that_passes_half_way(mill: Mill) -> None:
    """The lines that were done stay in the output; the others are batch_expired, whoever of two Sweepers was first."""
    hand = mill.hand(mill.echo(latency=20.0), window=7)
    batch_id = await mill.batch(lines(COUNT), window=60)
    await hand.scout.step()
    await hand.validator.step()
    await mill.turn(hand, seconds=59)
    await mill.clock.advance(2)
    await together(mill.sweeper.step(), mill.sweeper.step())
    assert await mill.finish(hand, batch_id) is Status.EXPIRED
    await check(mill, batch_id)
    done = len(await mill.results(batch_id))
    assert 0 < done < COUNT


async def test_many_cancels_at_once(mill: Mill) -> None:
    """Fifty cancels of one batch are one move."""
    hand = mill.hand(mill.echo(latency=1000.0))
    batch_id = await mill.batch(lines(COUNT))
    await hand.scout.step()
    await hand.validator.step()
    now = int(mill.clock.now())

    async def cancel() -> bool:
        return await mill.database.write(
            lambda tx: advance(tx, batch_id=batch_id, status=Status.IN_PROGRESS, event=Event.CANCEL, now=now)
        )

    assert sum(map(bool, await together(*(cancel() for _ in range(50))))) == 1
    assert await mill.finish(hand, batch_id) is Status.CANCELLED
    await check(mill, batch_id)


async def test_two_finalizers_at_once(mill: Mill) -> None:
    """Of two Finalizers one claims the batch, and the other does nothing."""
    hand = mill.hand(mill.echo())
    batch_id = await drained(mill, hand)
    stepped = await together(hand.finalizer.step(), mill.hand(mill.echo()).finalizer.step())
    assert sorted(map(bool, stepped)) == [False, True]
    assert await mill.status(batch_id) is Status.COMPLETED
    await check(mill, batch_id)


async def test_a_finalizer_that_was_fenced_off_writes_nothing(mill: Mill) -> None:
    """One that slept for a lease neither fences the other's Slices, nor publishes, nor puts the batch off."""
    hand = mill.hand(mill.echo())
    batch_id = await drained(mill, hand)
    asleep, heir = mill.hand(mill.echo()).finalizer, mill.hand(mill.echo()).finalizer
    batch = await mill.database.write(asleep._claim)
    assert batch is not None
    await mill.clock.advance(LEASE + 1)
    taken = await mill.database.write(heir._claim)
    assert taken is not None
    before = await mill.look(batch_id)
    await asleep._close(batch)
    async with asleep._attempts.over(batch, keys=[]):
        raise MemoryError
    assert await mill.look(batch_id) == before
    await heir._close(taken)
    assert await mill.status(batch_id) is Status.COMPLETED
    await check(mill, batch_id)
    while await mill.sweeper.step():
        pass
    await mill.sweeper.step()
    assert sorted(key.rpartition("-")[2] for key in mill.blobs.keys(before=float("inf")) if "-" in key) == [
        "order",
        "output",
    ]
