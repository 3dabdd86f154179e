"""What the loops do while the bucket is away: they wait, nothing is lost, nothing failed, and all goes on after."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from batchmill.spec.states import Status
from bucket import Bucket, bucket, toxic
from engine.mill import Mill, lines
from fakeclock import settle
from faults.toxic import Fault, Toxic

__all__ = ["bucket", "toxic"]

PASSING = [Fault.ERROR, Fault.SLOW_DOWN, Fault.RESET]


@pytest.fixture
async def mill(toxic: Toxic, bucket: Bucket, tmp_path: Path) -> AsyncIterator[Mill]:
    """A mill over a bucket that is asked for a moment only."""
    assert toxic.port
    made = await Mill.build(tmp_path, blobs=bucket.blobs(tmp_path, patience=0.05))
    yield made
    await made.database.close()


async def waits(mill: Mill, batch_id: str) -> bool:
    """Say whether the batch says that the storage is what it waits for, and no failure is counted."""
    batch = await mill.look(batch_id)
    return batch.crashes == 0 and batch.waiting == "the storage of files does not answer"


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.value)
async def test_validating_waits_for_the_bucket(mill: Mill, toxic: Toxic, fault: Fault) -> None:
    """However often it is tried in vain, it is no failure of the batch's; within two seconds of the end it goes on."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(3))
    toxic.fail(fault)
    await hand.scout.step()
    for _ in range(8):
        assert await hand.validator.step()
        assert await waits(mill, batch_id)
        assert not await hand.validator.step()  # it is put off, and others would have their turn
        await mill.clock.advance(2.1)
    toxic.heal()
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert len(await mill.results(batch_id)) == 3


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.value)
async def test_finalizing_waits_for_the_bucket(mill: Mill, toxic: Toxic, fault: Fault) -> None:
    """So does the end of a batch; the keys of the attempts in vain are doomed, and no bytes of them stay."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(3))
    await hand.accept()
    await mill.turn(hand, seconds=3)
    assert await mill.status(batch_id) is Status.FINALIZING
    toxic.fail(fault)
    for _ in range(8):
        assert await hand.finalizer.step()
        assert await waits(mill, batch_id)
        assert not await hand.finalizer.step()
        await mill.clock.advance(2.1)
    toxic.heal()
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert len(await mill.results(batch_id)) == 3
    while await mill.sweeper.step():
        pass
    assert len(set(mill.blobs.keys(before=float("inf")))) == 3  # the input, which has a File, the output, the order


@pytest.mark.parametrize("fault", [*PASSING, Fault.LOST_REPLY], ids=lambda fault: fault.value)
async def test_results_wait_for_the_bucket(mill: Mill, toxic: Toxic, fault: Fault) -> None:
    """A commit whose blob cannot be written is tried again under another key, and no line is sent twice for it."""
    echo = mill.echo()
    hand = mill.hand(echo)
    batch_id = await mill.batch(lines(20))
    await hand.accept()
    await hand.runner.step()  # claimed, loaded, sent
    await settle()
    toxic.requests.clear()
    toxic.fail(fault)
    await mill.turn(hand, seconds=10)
    assert (await mill.look(batch_id)).object.counts.completed == 0
    assert await mill.status(batch_id) is Status.IN_PROGRESS
    keys = {path for method, path in toxic.requests if method == "PUT"}
    assert len(keys) > 2
    toxic.heal()
    await mill.turn(hand, seconds=2)
    assert await mill.status(batch_id) is Status.FINALIZING
    assert len(echo.calls) == 20
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert len(await mill.results(batch_id)) == 20


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.value)
async def test_nothing_is_claimed_that_cannot_be_read(mill: Mill, toxic: Toxic, fault: Fault) -> None:
    """Slices whose Plan cannot be read are given back at once: another worker, with a bucket, may take them."""
    first, second = mill.hand(mill.echo()), mill.hand(mill.echo())
    batch_id = await mill.batch(lines(20))
    await first.accept()
    await second.scout.step()
    toxic.fail(fault)
    await mill.turn(first, seconds=2)
    toxic.heal()
    await mill.turn(second, seconds=2)
    assert await mill.status(batch_id) is Status.FINALIZING
    assert second.metrics.takeovers._value.get() == 0
    assert await mill.finish(second, batch_id) is Status.COMPLETED


async def test_lines_in_hand_wait_to_be_read(mill: Mill, toxic: Toxic) -> None:
    """A Slice that is claimed and whose lines cannot be read now is read once they can be."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(20))
    await hand.accept()
    key = (await mill.look(batch_id)).input_key
    toxic.once(Fault.ERROR, method="GET", path=str(key), times=50)
    await mill.turn(hand, seconds=1)
    assert toxic.met[Fault.ERROR] > 5
    assert (await mill.look(batch_id)).object.counts.completed == 0
    toxic.heal()
    await mill.turn(hand, seconds=2)
    assert await mill.status(batch_id) is Status.FINALIZING


async def test_sweeping_waits_for_the_bucket(mill: Mill, toxic: Toxic) -> None:
    """A sweep goes on with the rows while doomed bytes cannot be removed, and removes them later."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(3))
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    late = await mill.batch(lines(3), window=1)
    toxic.fail(Fault.RESET)
    await mill.clock.advance(2)
    sweeper = mill.sweeper
    for _ in range(20):
        await sweeper.step()
    assert await mill.status(late) is Status.EXPIRED
    toxic.heal()
    while await sweeper.step():
        pass
    assert len(set(mill.blobs.keys(before=float("inf")))) == 4  # two inputs, one output with its order


async def test_a_run_among_faults_is_whole(mill: Mill, toxic: Toxic) -> None:
    """With a third of all requests failing in every way, a batch ends with each line once, in order."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(600))
    toxic.fail(*PASSING, Fault.LOST_REPLY, share=0.33, seed=7)
    assert await mill.finish(hand, batch_id, seconds=300) is Status.COMPLETED
    toxic.heal()
    assert [result["custom_id"] for result in await mill.results(batch_id)] == [f"r-{n}" for n in range(600)]
    assert all(toxic.met[fault] for fault in (*PASSING, Fault.LOST_REPLY))
