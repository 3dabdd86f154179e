"""Claims and group commits."""

import asyncio
import resource
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from batchmill.blobs.blobs import Blobs
from batchmill.ledger.ledger import Ledger
from batchmill.ledger.segment import unpack_results
from batchmill.schedule.plan import Record
from batchmill.spec.objects import Counts, Usage
from batchmill.spec.states import Event, Status
from batchmill.store.batch import advance
from batchmill.store.database import Database, Transaction
from batchmill.store.slice import list_segments, list_slices
from batchmill.store.usage import list_usage
from batchmill.store.worker import void_leases
from ledger.work import add_work, claim, portion, result, whole
from store.rows import LAPSED, MINE, NOW, THEIRS, add_organisations, blobs_by_key, get_batch, status_of

EVER = float("inf")


@pytest.fixture(autouse=True)
async def _organisations(database: Database) -> None:
    await database.write(add_organisations)


def rows(tx: Transaction, batch_id: str = "batch_1", organisation_id: str = MINE) -> list[object]:
    """Return all that a group commit writes."""
    batch = get_batch(tx, batch_id, organisation_id=organisation_id)
    slices, segments = list_slices(tx, batch_id=batch_id), list_segments(tx, batch_id=batch_id)
    return [batch, slices, segments, blobs_by_key(tx), used(tx)]


def used(tx: Transaction, organisation_id: str = MINE) -> list[tuple[int, int, int]]:
    """Return the requests, those that failed, and the tokens that were counted in each day."""
    found = list_usage(tx, organisation_id=organisation_id, first=0, last=1 << 20, limit=1000)
    return [(of.used.requests, of.used.failed, of.used.tokens.input_tokens) for of in found]


def commit_keys(tx: Transaction) -> dict[str, tuple[str, int]]:
    """Return the blobs of group commits."""
    return {key: facts for key, facts in blobs_by_key(tx).items() if key.startswith("commit_")}


async def test_a_claim_brings_the_batch_and_the_records_of_its_lines(
    ledger: Ledger, database: Database, blobs: Blobs
) -> None:
    """Each claimed Slice comes with its batch and with the Plan's records of just its lines."""
    await add_work(database, blobs, slices=2, lines=3)
    claimed = await claim(ledger)
    assert [held.slice.ordinal for held in claimed] == [0, 1]
    assert [held.batch.id for held in claimed] == ["batch_1", "batch_1"]
    assert all(isinstance(record, Record) for record in claimed[0].records)
    assert [[record.line for record in held.records] for held in claimed] == [[1, 2, 3], [4, 5, 6]]


async def test_nothing_to_claim_is_an_empty_claim(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Without a batch, or when all is held, a claim gives nothing."""
    assert await claim(ledger) == []
    await add_work(database, blobs, slices=1)
    assert len(await claim(ledger)) == 1
    assert await claim(ledger) == []


async def test_organisations_share_a_claim(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Two organisations get the same number of Slices, however many batches one of them has."""
    for name, organisation_id in (("batch_1", MINE), ("batch_2", MINE), ("batch_3", THEIRS)):
        await add_work(database, blobs, name, slices=4, organisation_id=organisation_id)
    claimed = await claim(ledger, slices=4)
    assert sorted(held.slice.organisation_id for held in claimed) == [MINE, MINE, THEIRS, THEIRS]


async def test_a_claim_besides_those_in_hand(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """With batches in hand already, one Slice of each other batch is claimed."""
    for name in ("batch_1", "batch_2", "batch_3"):
        await add_work(database, blobs, name)
    claimed = await claim(ledger, besides=["batch_2"])
    assert sorted(held.batch.id for held in claimed) == ["batch_1", "batch_3"]


async def test_a_group_commit_is_one_blob_with_an_extent_for_each_slice(
    ledger: Ledger, database: Database, blobs: Blobs
) -> None:
    """All Results of a group are in one blob; each Slice's Segment says where, and holds just its own."""
    await add_work(database, blobs, slices=2)
    first, second = await claim(ledger)
    portions = [portion(first, map(result, (3, 1))), portion(second, [result(7)])]
    assert await ledger.commit(portions) == frozenset()
    (key,) = await database.read(commit_keys)
    assert await database.read(commit_keys) == {key: ("ready", 2)}
    segments = await database.read(lambda tx: list_segments(tx, batch_id="batch_1"))
    assert [(s.slice, s.seq, s.blob_key, s.offset, s.lines) for s in segments] == [
        (0, 1, key, 0, 2),
        (1, 1, key, segments[0].bytes, 1),
    ]
    for segment, indexes in zip(segments, ([3, 1], [7]), strict=True):
        data = blobs.read(key, offset=segment.offset, length=segment.bytes)
        assert [found.index for found in unpack_results(data, crc32=segment.crc32)] == indexes


async def test_a_group_commit_counts(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Counts, tokens and bitmaps grow with each commit, and `seq` numbers the commits of a batch."""
    await add_work(database, blobs, slices=1)
    (held,) = await claim(ledger)
    await ledger.commit([portion(held, [result(0), result(1, succeeded=False, usage=None)])])
    await ledger.commit([portion(held, [result(2)], before=[0, 1])])
    seen = (await database.read(get_batch)).object
    assert seen.counts == Counts(completed=2, failed=1, total=8)
    assert seen.usage == Usage(input_tokens=20, cached_tokens=4, output_tokens=10, reasoning_tokens=2)
    assert seen.status is Status.IN_PROGRESS
    segments = await database.read(lambda tx: list_segments(tx, batch_id="batch_1"))
    assert [segment.seq for segment in segments] == [1, 2]
    (kept,) = await database.read(lambda tx: list_slices(tx, batch_id="batch_1"))
    assert kept.done == b"\x07"
    assert await database.read(used) == [(3, 1, 20)]


async def test_the_last_closed_slice_drains_the_batch(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """The commit that closes a batch's last Slice moves it to `finalizing`, no commit before it does."""
    await add_work(database, blobs, slices=2)
    first, second = await claim(ledger)
    await ledger.commit([whole(first)])
    assert await database.read(lambda tx: status_of(tx, "batch_1")) is Status.IN_PROGRESS
    await ledger.commit([whole(second)])
    assert await database.read(lambda tx: status_of(tx, "batch_1")) is Status.FINALIZING


async def test_a_closing_batch_keeps_what_still_comes(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Results that end after a cancel are recorded, and the last Slice does not change where the batch goes."""
    await add_work(database, blobs, slices=1)
    (held,) = await claim(ledger)
    await database.write(
        lambda tx: advance(tx, batch_id="batch_1", status=Status.IN_PROGRESS, event=Event.CANCEL, now=NOW)
    )
    assert await ledger.commit([whole(held)]) == frozenset()
    seen = (await database.read(get_batch)).object
    assert (seen.status, seen.counts.completed) == (Status.CANCELLING, 8)


async def test_a_slice_that_was_taken_over_is_dropped_and_the_others_stand(
    ledger_of: Callable[..., Ledger], database: Database, blobs: Blobs
) -> None:
    """Of a group only the Slice whose fence fell is refused; nothing of it is recorded or counted."""
    await add_work(database, blobs, slices=3)
    late, other = ledger_of("w1"), ledger_of("w2")
    claims = await claim(late)
    await database.write(lambda tx: void_leases(tx, worker_id="w2"))
    (stolen,) = await claim(other, slices=1)
    assert stolen.slice.ordinal == 0
    assert await late.commit([portion(held, [result(5)]) for held in claims]) == {("batch_1", 0, 1)}
    kept = await database.read(lambda tx: list_slices(tx, batch_id="batch_1"))
    assert [held.done for held in kept] == [b"\x00", b"\x20", b"\x20"]
    segments = await database.read(lambda tx: list_segments(tx, batch_id="batch_1"))
    assert [segment.slice for segment in segments] == [1, 2]
    for segment in segments:  # the extents are those in the blob, which holds the dropped one, too
        data = blobs.read(segment.blob_key, offset=segment.offset, length=segment.bytes)
        assert [found.index for found in unpack_results(data, crc32=segment.crc32)] == [5]
    assert list((await database.read(commit_keys)).values()) == [("ready", 2)]
    assert (await database.read(get_batch)).object.counts.completed == 2
    assert await database.read(used) == [(2, 0, 20)]


async def test_a_commit_of_which_nothing_stands_writes_no_row(
    ledger_of: Callable[..., Ledger], database: Database, blobs: Blobs
) -> None:
    """A worker that lost every Slice is told so, and changes nothing."""
    await add_work(database, blobs, slices=1)
    late = ledger_of("w1", lease=LAPSED)
    (held,) = await claim(late)
    await claim(ledger_of("w2"))
    before = await database.read(rows)
    assert await late.commit([whole(held)]) == {("batch_1", 0, 1)}
    assert await database.read(rows) == before


async def test_a_transaction_that_fails_leaves_no_row(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """If the database refuses any part of a group nothing of it is recorded; its bytes are garbage without a row."""
    await add_work(database, blobs, slices=1)
    (held,) = await claim(ledger)
    await database.write(lambda tx: tx.connection.execute(text("UPDATE batch SET total = 1")))
    before = await database.read(rows)
    with pytest.raises(IntegrityError):
        await ledger.commit([portion(held, [result(0), result(1)])])
    assert await database.read(rows) == before
    (garbage,) = [key for key in blobs.keys(before=EVER) if key.startswith("commit_")]
    assert garbage not in await database.read(blobs_by_key)


@pytest.mark.parametrize("storage", ["sqlite+disk"], indirect=True)  # a bucket has no disk to be full
async def test_a_full_disk_leaves_neither_row_nor_bytes(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """If the blob of a group cannot be written the fault is raised before the transaction begins."""
    await add_work(database, blobs, slices=1)
    (held,) = await claim(ledger)
    before = await database.read(rows)
    large = portion(held, [replace(result(0), text=bytes(3 << 20))])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            await ledger.commit([large])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await database.read(rows) == before
    assert sorted(blobs.keys(before=EVER)) == ["batch_1-input", "batch_1-plan"]


async def test_an_empty_commit_does_nothing(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Without a portion there is neither a blob nor a transaction."""
    assert await ledger.commit([]) == frozenset()
    assert list(blobs.keys(before=EVER)) == []
    assert await database.read(blobs_by_key) == {}


async def test_a_group_commit_may_hold_several_batches(ledger: Ledger, database: Database, blobs: Blobs) -> None:
    """Each batch of a group is counted by itself; a blob of two organisations belongs to neither."""
    await add_work(database, blobs, "batch_1", slices=1)
    await add_work(database, blobs, "batch_2", slices=1, organisation_id=THEIRS)
    claims = {held.batch.id: held for held in await claim(ledger)}
    await ledger.commit([whole(claims["batch_2"]), portion(claims["batch_1"], [result(0)])])

    def seen(tx: Transaction) -> list[object]:
        owner = tx.connection.scalar(text("SELECT organisation_id FROM blob WHERE key LIKE 'commit%'"))
        batches = [get_batch(tx, "batch_1"), get_batch(tx, "batch_2", organisation_id=THEIRS)]
        counted = [used(tx), used(tx, THEIRS)]
        return [owner, *((batch.object.status, batch.object.counts.completed) for batch in batches), *counted]

    progress = [(Status.IN_PROGRESS, 1), (Status.FINALIZING, 8)]
    assert await database.read(seen) == [None, *progress, [(1, 0, 10)], [(8, 0, 80)]]


async def test_workers_that_commit_to_the_same_batches_do_not_block_each_other(
    ledger_of: Callable[..., Ledger], database: Database, blobs: Blobs
) -> None:
    """Commits of several workers to two batches, in either order, all succeed, each with a `seq` of its own."""
    names = ["batch_1", "batch_2"]
    for name in names:
        await add_work(database, blobs, name, slices=6)
    workers = [ledger_of(f"w{number}") for number in range(6)]
    hands = [await claim(worker, slices=2) for worker in workers]
    groups = [[portion(held, [result(0)]) for held in hand[:: 1 if n % 2 else -1]] for n, hand in enumerate(hands)]
    fallen = await asyncio.gather(*(worker.commit(group) for worker, group in zip(workers, groups, strict=True)))
    assert fallen == [frozenset()] * 6
    for name in names:
        segments = await database.read(lambda tx, name=name: list_segments(tx, batch_id=name))  # type: ignore[misc] - bound early
        assert sorted(segment.seq for segment in segments) == [1, 2, 3, 4, 5, 6]
    assert await database.read(used) == [(12, 0, 120)]


async def test_a_released_slice_is_free_at_once(
    ledger_of: Callable[..., Ledger], database: Database, blobs: Blobs
) -> None:
    """What a worker gives back is claimed by the next one, with what is done of it; a lost Slice is no fault."""
    await add_work(database, blobs, slices=1)
    first, second = ledger_of("w1"), ledger_of("w2")
    (held,) = await claim(first)
    await first.commit([portion(held, [result(0)])])
    await first.release([held.slice])
    (again,) = await claim(second)
    assert again.slice.done == b"\x01"
    await first.release([held.slice])
    assert await claim(first) == []
