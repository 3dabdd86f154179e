"""The Finalizer: both files in input order, whoever dies or is faster."""

import errno
from dataclasses import replace

import pytest

from batchmill.spec.states import Status
from batchmill.spec.usage import Used
from batchmill.store.batch import claim_batch
from batchmill.store.usage import Whose
from engine.faulty import FaultyBlobs
from engine.mill import LEASE, Mill, line, lines
from engine.test_account import used
from fakeclock import settle


async def _closing(mill: Mill) -> str:
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(5))
    await hand.scout.step()
    await hand.validator.step()
    await mill.turn(hand, seconds=1)
    assert await mill.status(batch_id) is Status.FINALIZING
    return batch_id


async def test_a_second_finalizer_starts_again(mill: Mill) -> None:
    """A Finalizer that died after it wrote its files is followed by another; the second's bytes stay, and count."""
    batch_id = await _closing(mill)
    dead, heir = mill.hand(mill.echo()).finalizer, mill.hand(mill.echo()).finalizer
    batch = await mill.database.write(dead._claim)
    assert batch is not None
    files, unanswered = dead._write_files(await dead._fence(batch))
    assert not await heir.step()
    await mill.clock.advance(LEASE + 1)
    assert await heir.step()
    assert await mill.status(batch_id) is Status.COMPLETED
    nothing = Whose(batch.organisation_id, "", "nothing")
    unanswered = replace(unanswered, used={nothing: Used(requests=1)})
    assert not await mill.database.write(lambda tx: dead._seal(tx, batch, files, unanswered))
    assert nothing not in await used(mill)
    assert len(await mill.results(batch_id)) == 5


async def test_a_cancel_beats_a_finalizer(mill: Mill) -> None:
    """A cancel while the files are written ends as cancelled, and every result is kept."""
    batch_id = await _closing(mill)
    finalizer = mill.hand(mill.echo()).finalizer
    batch = await mill.database.write(finalizer._claim)
    assert batch is not None
    files, unanswered = finalizer._write_files(await finalizer._fence(batch))
    await mill.cancel(batch_id)
    assert not await mill.database.write(lambda tx: finalizer._seal(tx, batch, files, unanswered))
    assert await finalizer.step()
    assert await mill.status(batch_id) is Status.CANCELLED
    assert len(await mill.results(batch_id)) == 5


async def test_a_runner_that_does_not_let_go_is_fenced(mill: Mill) -> None:
    """Thirty seconds after a cancel the Finalizer takes the Slices that a runner still holds."""
    hand = mill.hand(mill.echo(latency=1000.0))
    batch_id = await mill.batch(lines(5))
    await hand.scout.step()
    await hand.validator.step()
    await hand.runner.step()
    await settle()
    await mill.cancel(batch_id)
    assert not await hand.finalizer.step()
    for _ in range(4):
        await mill.renew(hand)  # alive, but it does not look at its batches
        await mill.clock.advance(8)
    assert await hand.finalizer.step()
    assert await mill.status(batch_id) is Status.CANCELLED
    assert (await mill.look(batch_id)).object.counts.failed == 5


@pytest.mark.parametrize(("own", "retention"), [(3600, None), (None, 3600), (3600, 60), (3600, 7200)])
async def test_result_files_may_expire(mill: Mill, own: int | None, retention: int | None) -> None:
    """`output_expires_after`, else the retention, counts from the result file's own creation; then it is swept."""
    hand = mill.hand(mill.echo(), retention=retention)
    batch_id = await mill.batch(lines(2), output_expires_after=own)
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    await mill.clock.advance(3500)
    await mill.sweeper.step()
    assert len(await mill.results(batch_id)) == 2
    await mill.clock.advance(101)
    for _ in range(3):
        await mill.sweeper.step()
    left = [key for key in mill.blobs.keys(before=float("inf")) if "output" in key]
    assert left == []


async def test_a_finalizing_that_failed_is_tried_again_soon(mill: Mill) -> None:
    """Its Slices are fenced and nobody's by then, so the second try waits for no grace: it is a few seconds later."""
    mill.blobs = faulty = FaultyBlobs(mill.blobs)
    hand = mill.hand(mill.echo(latency=1.0), window=4)
    batch_id = await mill.batch(lines(50))
    await hand.accept()
    await mill.turn(hand, seconds=3)
    await mill.cancel(batch_id)
    await mill.turn(hand, seconds=2)
    faulty.where, faulty.number = "error", errno.ENOSPC
    assert await hand.finalizer.step()
    assert await mill.status(batch_id) is Status.CANCELLING
    faulty.number = None
    before = mill.clock.uptime
    assert await mill.finish(hand, batch_id, seconds=20) is Status.CANCELLED
    assert mill.clock.uptime - before < 7


async def test_a_cancel_does_not_wait_for_a_validation(mill: Mill) -> None:
    """A cancel takes a batch from whoever validates it: the Finalizer seals it at once."""
    batch_id = await mill.batch(lines(5))
    hand = mill.hand(mill.echo())
    claimed = await mill.database.write(
        lambda tx: claim_batch(tx, worker_id="another", statuses=[Status.VALIDATING], lease=LEASE)
    )
    assert claimed is not None
    await mill.cancel(batch_id)
    assert await hand.finalizer.step()
    assert await mill.status(batch_id) is Status.CANCELLED


@pytest.mark.parametrize(("good", "bad"), [(1, 0), (0, 1), (7, 0), (0, 7), (300, 1), (1, 300)])
async def test_a_file_without_a_line_is_no_file(mill: Mill, good: int, bad: int) -> None:
    """C18, contract b: without a line that succeeded there is no output file, without one that failed no error file."""
    refused = b"".join(line(f"bad-{n}", 7) for n in range(bad))  # the content is no text: a 400
    batch_id = await mill.batch(lines(good) + refused)
    assert await mill.finish(mill.hand(mill.echo()), batch_id) is Status.COMPLETED
    facts = (await mill.look(batch_id)).object
    assert (facts.counts.completed, facts.counts.failed, facts.counts.total) == (good, bad, good + bad)
    assert (facts.output_file_id is None, facts.error_file_id is None) == (good == 0, bad == 0)
    assert [r["custom_id"] for r in await mill.results(batch_id)] == [f"r-{n}" for n in range(good)]
    assert [r["custom_id"] for r in await mill.results(batch_id, "error")] == [f"bad-{n}" for n in range(bad)]
