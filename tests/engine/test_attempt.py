"""What becomes of a batch whose validating or finalizing fails, and of the others meanwhile."""

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from batchmill.blobs.space import Room, Space
from batchmill.spec.states import Status
from batchmill.store.batch import TRIES, unstick
from batchmill.store.database import Transaction
from blobs.put import content, put
from engine.faulty import FaultyBlobs, FaultyDatabase
from engine.mill import LEASE, Hand, Mill, lines
from storage import on_disk
from store.rows import stuck_ids
from volume import fill, small_volume

WRITES = [("plan", 0, 5), ("plan", 1, 1100), ("output", 0, 5), ("output", 1, 5)]  # where, after, lines


@pytest.fixture
def faulty(mill: Mill) -> FaultyBlobs:
    """The mill's disk, which may fail."""
    made = FaultyBlobs(mill.blobs)
    mill.blobs = made
    return made


@pytest.fixture
async def volume(tmp_path: Path) -> AsyncIterator[Mill]:
    """A mill on a volume of 40 MiB."""
    with small_volume(tmp_path / "volume", mib=40) as folder:
        made = await Mill.build(folder)
        made.room = Space(folder=folder)
        made.room.keep()
        yield made
        await made.database.close()


class Blind:
    """Room that does not see how little there is, as with a quota."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def short(self) -> str | None:
        """See `Room`."""
        return None

    def keep(self) -> None:
        """See `Room`."""
        self._room.keep()

    def give(self) -> None:
        """See `Room`."""
        self._room.give()


async def drained(mill: Mill, hand: Hand, count: int = 5) -> str:
    """Return a batch whose lines are all done."""
    batch_id = await mill.batch(lines(count))
    await hand.scout.step()
    await hand.validator.step()
    while await mill.status(batch_id) is not Status.FINALIZING:
        await mill.turn(hand, seconds=0.1)
    return batch_id


def damage(mill: Mill) -> None:
    """Flip a bit of every Segment; done twice, all is as it was."""
    for key in list(mill.blobs.keys(before=float("inf"))):
        if key.startswith("commit_"):
            data = content(mill.blobs, key)
            mill.blobs.delete(key)
            put(mill.blobs, key, data[:20] + bytes([data[20] ^ 1]) + data[21:])


@pytest.mark.parametrize(("where", "after", "count"), WRITES)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
async def test_a_write_without_space_waits(
    mill: Mill, faulty: FaultyBlobs, *, where: str, after: int, count: int, number: int
) -> None:
    """Whichever write has no space, the batch waits with the reason, nothing is left over, and it ends as it would."""
    hand = mill.hand(mill.echo())
    faulty.number, faulty.where, faulty.after = number, where, after
    batch_id = await mill.batch(lines(count))
    status = await mill.finish(hand, batch_id, seconds=5)
    assert status is (Status.VALIDATING if where == "plan" else Status.FINALIZING)
    waiting = await mill.look(batch_id)
    assert waiting.crashes == 0
    assert waiting.waiting is not None
    assert waiting.waiting.startswith("the disk is full")
    await mill.sweeper.step()
    assert [key for key in mill.blobs.keys(before=float("inf")) if where in key] == []
    faulty.number = None
    before = mill.clock.uptime
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert mill.clock.uptime - before <= 30
    assert (await mill.look(batch_id)).waiting is None
    assert len(await mill.results(batch_id)) == count


@pytest.mark.parametrize("where", ["plan", "output"])
async def test_an_io_error_ends_the_worker(mill: Mill, faulty: FaultyBlobs, where: str) -> None:
    """A disk that fails is nothing to go on with: the fault is raised."""
    faulty.number, faulty.where = errno.EIO, where
    with pytest.raises(OSError, match="Input/output error"):
        await mill.finish(mill.hand(mill.echo()), await mill.batch(lines(5)))


@on_disk  # how SQLite says that it is away
async def test_a_database_that_is_away_ends_the_worker(mill: Mill, faulty: FaultyBlobs) -> None:
    """The same for rows: it is no fault of the batch."""
    hand = mill.hand(mill.echo())
    batch_id = await drained(mill, hand)

    def break_it(tx: Transaction) -> None:
        tx.connection.execute(text("ALTER TABLE segment RENAME TO gone"))

    await mill.database.write(break_it)
    with pytest.raises(OperationalError):
        await hand.finalizer.step()
    assert (await mill.look(batch_id)).crashes == 0
    assert faulty.number is None


async def test_a_full_volume_in_mid_finalize(volume: Mill) -> None:
    """On a real volume that fills up finalizing stops with its reason; nothing is lost, and it goes on by itself."""
    hand = volume.hand(volume.echo())
    batch_id = await drained(volume, hand, 2000)
    ballast = fill(volume.folder, leave=1 << 20)
    assert not await hand.finalizer.step()  # below the floor it does not begin
    volume.room.keep()
    rest = fill(volume.folder, name="rest")
    volume.room.keep()
    assert not (volume.folder / "reserve").exists()
    assert not await hand.finalizer.step()
    ballast.unlink()
    rest.unlink()
    volume.room.keep()
    assert await volume.finish(hand, batch_id, seconds=30) is Status.COMPLETED
    assert len(await volume.results(batch_id)) == 2000
    assert (volume.folder / "reserve").exists()


async def test_the_volume_fills_while_the_files_are_written(volume: Mill) -> None:
    """A write that the kernel refuses in the middle leaves no half file, and the batch says why it waits."""
    volume.room = Blind(volume.room)
    hand = volume.hand(volume.echo())
    batch_id = await drained(volume, hand, 2000)
    ballast = fill(volume.folder, leave=200 << 10)
    assert await hand.finalizer.step()
    waiting = await volume.look(batch_id)
    assert (waiting.object.status, waiting.crashes) == (Status.FINALIZING, 0)
    assert waiting.waiting == "the disk is full: a write had no space"
    assert not list((volume.folder / "blobs").rglob("*.part"))
    ballast.unlink()
    assert await volume.finish(hand, batch_id, seconds=30) is Status.COMPLETED
    assert len(await volume.results(batch_id)) == 2000


async def test_the_volume_fills_while_an_input_is_validated(volume: Mill) -> None:
    """The same for a Plan, written by a process of its own."""
    volume.room = Blind(volume.room)
    hand = volume.hand(volume.echo())
    await hand.scout.step()
    batch_id = await volume.batch(lines(75_000))
    ballast = fill(volume.folder, leave=300 << 10)
    assert await hand.validator.step()
    assert (await volume.look(batch_id)).waiting == "the disk is full: a write had no space"
    assert await volume.status(batch_id) is Status.VALIDATING
    ballast.unlink()
    await volume.clock.advance(6)
    assert await hand.validator.step()
    assert await volume.status(batch_id) is Status.IN_PROGRESS


async def test_damaged_results_stop_no_other_batch(mill: Mill) -> None:
    """A batch that cannot be finalized waits with its reason, a little longer each time, while others complete."""
    hand = mill.hand(mill.echo())
    hurt = await drained(mill, hand)
    damage(mill)
    with capture_logs() as logged:
        assert await hand.finalizer.step()
    (entry,) = [entry for entry in logged if entry["log_level"] == "error"]
    assert (entry["batch"], entry["crashes"]) == (hurt, 1)
    assert "checksum" in str(entry["exc_info"])
    assert not await hand.finalizer.step()  # it has been put off
    well = await mill.batch(lines(3))
    assert await mill.finish(hand, well) is Status.COMPLETED
    facts = await mill.look(hurt)
    assert facts.object.status is Status.FINALIZING
    assert facts.waiting is not None
    assert facts.waiting.startswith("finalizing failed, 1 of 5 times: stored results are damaged")


async def test_a_batch_that_always_fails_is_stuck(mill: Mill) -> None:
    """After five failures nobody takes a batch any more; its results stay, and a fresh start gives it five more."""
    hand = mill.hand(mill.echo())
    hurt = await drained(mill, hand)
    damage(mill)
    waits = []
    for number in range(TRIES):
        before = mill.clock.uptime
        while not await hand.finalizer.step():
            await mill.clock.advance(0.5)
        waits.append(mill.clock.uptime - before)
        assert (await mill.look(hurt)).crashes == number + 1
    assert waits == [0, 2, 4, 8, 16]
    await mill.clock.advance(3600)
    assert not await hand.finalizer.step()
    assert await mill.database.read(stuck_ids) == [hurt]
    assert str((await mill.look(hurt)).waiting).startswith("stuck: finalizing failed 5 times in a row")
    damage(mill)  # the operator's backup is there again
    await mill.database.write(unstick)
    assert await mill.database.read(stuck_ids) == []
    assert await mill.finish(hand, hurt) is Status.COMPLETED
    assert len(await mill.results(hurt)) == 5


async def test_an_input_that_is_gone_stops_no_other_batch(mill: Mill) -> None:
    """The same in validation: a batch whose input has no bytes waits, the next one is validated."""
    await mill.knows("echo")
    hurt = await mill.batch(lines(1))
    mill.blobs.delete(str((await mill.look(hurt)).input_key))
    well = await mill.batch(lines(1))
    hand = mill.hand(mill.echo())
    while await hand.validator.step():
        pass
    assert [await mill.status(batch_id) for batch_id in (hurt, well)] == [Status.VALIDATING, Status.IN_PROGRESS]
    assert "stored bytes are missing" in str((await mill.look(hurt)).waiting)


async def test_a_success_forgets_the_failures(mill: Mill) -> None:
    """Failures count in a row: a batch that was validated after some has all its tries again."""
    await mill.knows("echo")
    batch_id = await mill.batch(lines(1))
    key = str((await mill.look(batch_id)).input_key)
    content = mill.blobs.read(key, offset=0, length=len(lines(1)))
    mill.blobs.delete(key)
    hand = mill.hand(mill.echo())
    assert await hand.validator.step()
    assert (await mill.look(batch_id)).crashes == 1
    writer = mill.blobs.writer(key)
    writer.write(content)
    writer.finish()
    await mill.clock.advance(2)
    assert await hand.validator.step()
    facts = await mill.look(batch_id)
    assert (facts.object.status, facts.crashes, facts.waiting) == (Status.IN_PROGRESS, 0, None)


async def test_a_batch_that_kills_its_workers_is_stuck(mill: Mill) -> None:
    """An owner whose lease lapsed is a failure, too: after five of them nobody takes the batch."""
    batch_id = await drained(mill, mill.hand(mill.echo()))
    for number in range(TRIES):
        batch = await mill.database.write(mill.hand(mill.echo()).finalizer._claim)
        assert batch is not None
        assert batch.crashes == number
        await mill.clock.advance(LEASE + 1)
    assert not await mill.hand(mill.echo()).finalizer.step()
    assert await mill.database.read(stuck_ids) == [batch_id]


@pytest.mark.parametrize("doing", ["plan", "output"])
async def test_what_a_full_database_could_not_take_is_made_up_for(mill: Mill, doing: str) -> None:
    """If not even the rows have room the loop lives on, and lets go of the batch as soon as they have."""
    mill.blobs = blobs = FaultyBlobs(mill.blobs)
    mill.database = database = FaultyDatabase(mill.database)
    hand = mill.hand(mill.echo())
    await hand.scout.step()
    batch_id = await mill.batch(lines(5))
    blobs.number, blobs.where, blobs.then = errno.ENOSPC, doing, database.fill
    while not database.full:
        await hand.validator.step()
        if doing == "output":
            await mill.turn(hand, seconds=1)
            await hand.finalizer.step()
    held = await mill.look(batch_id)
    assert held.waiting is None
    for _ in range(10):
        assert not await hand.validator.step()
        assert not await hand.finalizer.step()
        await mill.clock.advance(0.25)
    blobs.number, blobs.then, database.full = None, None, False
    await mill.renew(hand)
    before = mill.clock.uptime
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert mill.clock.uptime - before <= 30
