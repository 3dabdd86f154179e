"""The Sweeper: what nobody else moves, and what nobody needs."""

import os

from batchmill.spec.states import Status
from batchmill.store.batch import list_batches
from engine.mill import Mill, lines


async def test_a_window_that_passes_while_validating(mill: Mill) -> None:
    """A batch whose window passes in `validating` expires with both files null."""
    batch_id = await mill.batch(lines(1), window=10)
    await mill.clock.advance(11)
    await mill.sweeper.step()
    batch = (await mill.look(batch_id)).object
    assert batch.status is Status.EXPIRED
    assert batch.expired_at is not None
    assert batch.output_file_id is batch.error_file_id is None


async def test_a_batch_expires_with_every_backend_dead(mill: Mill) -> None:
    """Expiry needs no backend: every line is in the error file as `batch_expired`."""
    await mill.knows("echo")
    hand = mill.hand(mill.echo(models=("other",)))
    batch_id = await mill.batch(lines(300), window=10)
    await hand.validator.step()
    await mill.clock.advance(11)
    await mill.sweeper.step()
    assert await mill.finish(hand, batch_id) is Status.EXPIRED
    assert [r["custom_id"] for r in await mill.results(batch_id, "error")] == [f"r-{n}" for n in range(300)]


async def test_a_final_batch_is_cleared(mill: Mill) -> None:
    """After the end only the input and the result file are left: no Slice, no Segment, no Plan."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(300))
    await mill.finish(hand, batch_id)
    for _ in range(3):
        await mill.sweeper.step()
    kinds = sorted(key.rpartition("-")[2].partition("_")[0] for key in mill.blobs.keys(before=float("inf")))
    assert kinds == ["output", "upload"]
    assert len(await mill.results(batch_id)) == 300


async def test_orphaned_bytes_go_after_an_hour(mill: Mill) -> None:
    """Bytes without a row are removed when they are an hour old, half-written ones too; younger ones stay."""
    for name in ("old", "young"):
        writer = mill.blobs.writer(name)
        writer.write(b"x")
        writer.finish()
    torn = mill.blobs.writer("torn")
    torn.write(b"y" * (2 << 20))
    sweeper = mill.sweeper
    await mill.clock.advance(700)
    for path in (mill.folder / "blobs").rglob("*"):
        if path.is_file():
            age = 3700 if "young" not in path.name else 60
            os.utime(path, (mill.clock.now() - age, mill.clock.now() - age))
    await sweeper.step()
    assert list(mill.blobs.keys(before=float("inf"))) == ["young"]
    torn.discard()


async def test_clearing_one_organisations_batch_leaves_the_others(mill: Mill) -> None:
    """A group commit's blob that two organisations share goes with the last of them."""
    hand = mill.hand(mill.echo())
    first = await mill.batch(lines(20))
    second = await mill.batch(lines(20), organisation="theirs")
    assert await mill.finish(hand, first) is Status.COMPLETED
    await mill.sweeper.step()
    assert await mill.finish(hand, second) is Status.COMPLETED
    assert len(await mill.results(second)) == 20
    theirs = (await mill.look(second)).organisation_id
    listed = await mill.database.read(lambda tx: list_batches(tx, organisation_id=theirs, after=None, limit=10))
    assert [batch.id for batch in listed] == [second]
