"""Claims and group commits, on both databases: a Result is recorded whole, once, by the Slice's last owner."""

from dataclasses import replace

import pytest

from batchmill.blobs.disk import DiskBlobs
from batchmill.ledger.ledger import Claim, Ledger, Portion
from batchmill.ledger.merge import Rest, merge_results
from batchmill.ledger.segment import DamagedSegment, Result, unpack_results
from batchmill.schedule.plan import Record, pack
from batchmill.spec.objects import Usage
from batchmill.spec.states import Event, Status
from batchmill.store.batch import Batch, advance, batches_by_id
from batchmill.store.database import Database, Transaction
from batchmill.store.slice import list_segments, list_slices
from fakeclock import FakeClock
from store.rows import LAPSED, LEASE, MINE, NOW, THEIRS, add_organisations, add_running

MODELS = ("m",)
LINE = b'{"custom_id": "id"}\n'


async def _running(database: Database, blobs: DiskBlobs, *, slices: int = 2, lines: int = 4) -> None:
    """Put batch_1 of one organisation and batch_2 of another in progress, with their Plans and inputs."""
    for batch_id in ("batch_1", "batch_2"):
        for kind, data in (
            ("input", LINE * slices * lines),
            (
                "plan",
                b"".join(pack(Record(n * len(LINE), len(LINE), n + 1, 14, 4, 0, 1, 0)) for n in range(slices * lines)),
            ),
        ):
            writer = blobs.writer(f"{batch_id}-{kind}")
            writer.write(data)
            writer.finish()

    def statements(tx: Transaction) -> None:
        add_organisations(tx)
        add_running(tx, "batch_1", slices=slices, lines=lines)
        add_running(tx, "batch_2", slices=slices, lines=lines, organisation_id=THEIRS)

    await database.write(statements)


def _ledger(database: Database, blobs: DiskBlobs, worker_id: str = "worker_1", lease: float = LEASE) -> Ledger:
    return Ledger(database=database, blobs=blobs, clock=FakeClock(), worker_id=worker_id, lease=lease)


def _portion(claim: Claim, indexes: range, *, closed: bool = False) -> Portion:
    done = bytearray(claim.slice.done)
    for index in indexes:
        done[index >> 3] |= 1 << (index & 7)
    results = [
        Result(
            index=i, succeeded=i % 2 == 0, attempts=1, text=b"%d\n" % i, usage=Usage(input_tokens=1, output_tokens=2)
        )
        for i in indexes
    ]
    return Portion(slice=claim.slice, results=results, done=bytes(done), closed=closed)


async def test_claims_take_turns(database: Database, blobs: DiskBlobs) -> None:
    """Slices are claimed organisation by organisation in turns, each once, with the records of their lines."""
    await _running(database, blobs)
    claims = await _ledger(database, blobs).claim(slices=3, models=MODELS)
    assert len({(c.slice.batch_id, c.slice.ordinal) for c in claims}) == 3
    assert {c.slice.organisation_id for c in claims[:2]} == {MINE, THEIRS}
    assert [record.line for c in claims if c.slice.ordinal == 1 for record in c.records] == [5, 6, 7, 8]
    assert len(await _ledger(database, blobs, "worker_2").claim(slices=9, models=MODELS)) == 1


async def test_batches_in_hand_are_left_out(database: Database, blobs: DiskBlobs) -> None:
    """A claim besides what is in hand brings one Slice of each other batch."""
    await _running(database, blobs)
    claims = await _ledger(database, blobs).claim(slices=9, models=MODELS, besides={"batch_1"})
    assert [(c.slice.batch_id, c.slice.ordinal) for c in claims] == [("batch_2", 0)]


async def test_a_group_is_one_blob(database: Database, blobs: DiskBlobs) -> None:
    """Results of several Slices and organisations lie in one blob, as extents that read back."""
    await _running(database, blobs)
    ledger = _ledger(database, blobs)
    claims = await ledger.claim(slices=4, models=MODELS)
    assert await ledger.commit([_portion(claim, range(3)) for claim in claims]) == frozenset()
    segments = await database.read(
        lambda tx: [*list_segments(tx, batch_id="batch_1"), *list_segments(tx, batch_id="batch_2")]
    )
    assert len(segments) == 4
    assert len({segment.blob_key for segment in segments}) == 1
    for segment in segments:
        data = blobs.read(segment.blob_key, offset=segment.offset, length=segment.bytes)
        assert [result.text for result in unpack_results(data, crc32=segment.crc32)] == [b"0\n", b"1\n", b"2\n"]
    batch = (await database.read(lambda tx: batches_by_id(tx, batch_ids=["batch_1"])))["batch_1"].object
    assert (batch.counts.completed, batch.counts.failed) == (4, 2)
    assert batch.usage == Usage(input_tokens=6, output_tokens=12)


async def test_a_fallen_slice_leaves_the_others_standing(database: Database, blobs: DiskBlobs) -> None:
    """A Slice that was taken over is dropped from the group; what the new owner records is final."""
    await _running(database, blobs, slices=1)
    stale = _ledger(database, blobs, "worker_1", lease=LAPSED)
    lost, kept = await stale.claim(slices=2, models=MODELS)
    heir = _ledger(database, blobs, "worker_2")
    (taken,) = [c for c in await heir.claim(slices=1, models=MODELS) if c.slice.batch_id == lost.slice.batch_id]
    assert taken.slice.epoch == lost.slice.epoch + 1
    fallen = await stale.commit([_portion(lost, range(4), closed=True), _portion(kept, range(4), closed=True)])
    assert fallen == {(lost.slice.batch_id, 0)}
    statuses = await database.read(lambda tx: batches_by_id(tx, batch_ids=["batch_1", "batch_2"]))
    assert statuses[lost.slice.batch_id].object.counts.completed == 0
    assert statuses[kept.slice.batch_id].object.status is Status.FINALIZING


async def test_the_last_slice_drains_the_batch(database: Database, blobs: DiskBlobs) -> None:
    """Whoever closes the last Slice moves the batch on, in the same transaction."""
    await _running(database, blobs)
    ledger = _ledger(database, blobs)
    first, second = [c for c in await ledger.claim(slices=4, models=MODELS) if c.slice.batch_id == "batch_1"]
    await ledger.commit([_portion(first, range(4), closed=True)])
    assert (await _batch_1(database)).object.status is Status.IN_PROGRESS
    await ledger.commit([_portion(second, range(4), closed=True)])
    assert (await _batch_1(database)).object.status is Status.FINALIZING


async def test_a_closing_batch_is_not_drained(database: Database, blobs: DiskBlobs) -> None:
    """Closing the last Slice of a cancelled batch records the Results and leaves the status alone."""
    await _running(database, blobs, slices=1)
    ledger = _ledger(database, blobs)
    (claim,) = [c for c in await ledger.claim(slices=2, models=MODELS) if c.slice.batch_id == "batch_1"]
    await database.write(
        lambda tx: advance(tx, batch_id="batch_1", status=Status.IN_PROGRESS, event=Event.CANCEL, now=NOW)
    )
    assert await ledger.commit([_portion(claim, range(4), closed=True)]) == frozenset()
    batch = await _batch_1(database)
    assert (batch.object.status, batch.object.counts.completed) == (Status.CANCELLING, 2)


async def test_released_slices_are_claimed_with_their_holes(database: Database, blobs: DiskBlobs) -> None:
    """A released Slice goes to the next claim, with what is done marked."""
    await _running(database, blobs, slices=1)
    ledger = _ledger(database, blobs)
    claims = await ledger.claim(slices=2, models=MODELS)
    await ledger.commit([_portion(claim, range(2)) for claim in claims])
    await ledger.release([claim.slice for claim in claims])
    again = await _ledger(database, blobs, "worker_2").claim(slices=2, models=MODELS)
    assert [claim.slice.done for claim in again] == [b"\x03", b"\x03"]


async def test_a_merge_is_in_input_order(database: Database, blobs: DiskBlobs) -> None:
    """Results recorded in any order come back in the input's; open lines become the rest, with their custom_id."""
    await _running(database, blobs)
    ledger = _ledger(database, blobs)
    claims = [c for c in await ledger.claim(slices=4, models=MODELS) if c.slice.batch_id == "batch_1"]
    for indexes in (range(2, 4), range(1)):
        await ledger.commit([replace(_portion(claims[1], indexes), done=b"\x0d")])
    slices = await database.read(lambda tx: list_slices(tx, batch_id="batch_1"))
    segments = await database.read(lambda tx: list_segments(tx, batch_id="batch_1"))
    batch = await _batch_1(database)
    rest = Rest(code="batch_cancelled", message="no")
    merged = list(merge_results(blobs=blobs, batch=batch, slices=slices, segments=segments, rest=rest))
    assert [result.attempts for result in merged] == [0, 0, 0, 0, 1, 0, 1, 1]
    assert [result.text for result in merged if result.attempts] == [b"0\n", b"2\n", b"3\n"]
    assert b'"custom_id":"id","response":null,"error":{"code":"batch_cancelled"' in merged[0].text
    with pytest.raises(DamagedSegment, match="no Result"):
        list(merge_results(blobs=blobs, batch=batch, slices=slices, segments=segments, rest=None))
    with pytest.raises(DamagedSegment, match="twice"):
        list(merge_results(blobs=blobs, batch=batch, slices=slices, segments=[*segments, *segments[:1]], rest=rest))


async def _batch_1(database: Database) -> Batch:
    return (await database.read(lambda tx: batches_by_id(tx, batch_ids=["batch_1"])))["batch_1"]
