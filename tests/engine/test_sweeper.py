"""The Sweeper: what nobody else moves, and what nobody needs."""

import os

from structlog.testing import capture_logs

from batchmill.blobs.space import Space
from batchmill.spec.states import Status
from batchmill.store.batch import list_batches
from batchmill.store.blob import doom_blob, insert_writing
from batchmill.store.database import Transaction
from batchmill.store.replay import Call, insert_answer, may_be_lost
from engine.faulty import FaultyDatabase
from engine.mill import Mill, lines
from storage import on_disk


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
    assert kinds == ["order", "output", "upload"]
    assert len(await mill.results(batch_id)) == 300


async def test_an_answer_that_nobody_asks_for_again_goes(mill: Mill) -> None:
    """What a POST answered is removed when its time is over, and not before."""
    batch_id = await mill.batch(lines(1))
    organisation_id = (await mill.look(batch_id)).organisation_id
    call = Call(id="replay_1", organisation_id=organisation_id, caller="c", route="batches", key_digest=None, retries=0)
    expires_at = int(mill.clock.now()) + 900
    await mill.database.write(
        lambda tx: insert_answer(tx, call=call, fingerprint="f", made_id=batch_id, answer=b"{}", expires_at=expires_at)
    )
    for passed, is_there in ((899, True), (1, False)):
        await mill.clock.advance(passed)
        await mill.sweeper.step()
        assert await mill.database.read(lambda tx: may_be_lost(tx, caller="c", made_id=batch_id)) is is_there


@on_disk  # no server's clock is a test's to move
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


async def test_a_full_database_stops_no_sweep_that_makes_room(mill: Mill) -> None:
    """If rows have no room the Sweeper says so once and goes on; bytes are removed all the same."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(3))
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    late = await mill.batch(lines(1), window=10)
    await mill.clock.advance(11)
    sweeper = mill.sweeper
    while await sweeper.step():
        pass
    assert await mill.status(late) is Status.EXPIRED
    mill.database = database = FaultyDatabase(mill.database)
    later = await mill.batch(lines(1), window=10)
    await mill.clock.advance(11)
    await mill.database.write(lambda tx: add_doomed(tx, "upload_doomed"))
    writer = mill.blobs.writer("upload_doomed")
    writer.write(b"x")
    writer.finish()
    sweeper = mill.sweeper
    database.full = True
    with capture_logs() as logged:
        for _ in range(5):
            assert not await sweeper.step()
    assert [entry["event"] for entry in logged] == ["the disk is full: not all could be swept"]
    assert "upload_doomed" not in mill.blobs.keys(before=float("inf"))
    database.full = False
    await sweeper.step()
    assert await mill.status(later) is Status.EXPIRED


def add_doomed(tx: Transaction, key: str) -> None:
    """Add a row of bytes that are to go."""
    insert_writing(tx, key=key, organisation_id=None, now=1)  # type: ignore[arg-type] - a row of nobody's
    doom_blob(tx, key=key)


async def test_the_reserve_is_kept(mill: Mill) -> None:
    """Each sweep makes the reserve, if it is not there and there is room."""
    mill.room = Space(folder=mill.folder)
    await mill.sweeper.step()
    assert (mill.folder / "reserve").exists()


async def test_many_slices_are_cleared_in_portions(mill: Mill) -> None:
    """A large batch is cleared over several steps, each with a short transaction; in the end nothing is left of it."""
    hand = mill.hand(mill.echo(), window=256)
    batch_id = await mill.batch(lines(256 * 65))
    await hand.scout.step()
    await hand.validator.step()
    await mill.cancel(batch_id)
    assert await hand.finalizer.step()
    sweeper, steps = mill.sweeper, 0
    while await sweeper.step():
        steps += 1
    assert steps >= 2
    assert (await mill.look(batch_id)).input_key is None
    kinds = sorted(key.rpartition("-")[2].partition("_")[0] for key in mill.blobs.keys(before=float("inf")))
    assert kinds == ["error", "order", "upload"]
