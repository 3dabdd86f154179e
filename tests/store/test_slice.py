"""Claims of Slices, the fence, and the rows of Segments."""

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.exc import IntegrityError

from batchmill.schedule.choose import Candidate
from batchmill.spec.states import Event, Status
from batchmill.store.alerts import read_alerts
from batchmill.store.batch import advance, clear_batch, finished_uncleared, has_batch, hold_back, is_settled
from batchmill.store.blob import drop_refs, insert_ready
from batchmill.store.database import Database, SqliteDatabase, Transaction
from batchmill.store.postgres import PostgresDatabase
from batchmill.store.slice import (
    Segment,
    Slice,
    claim_slices,
    delete_slices,
    fence_slices,
    insert_segments,
    insert_slices,
    list_candidates,
    list_segments,
    list_slices,
    mark_alone,
    mark_sent,
    record_done,
    release_slice,
    void_slices,
)
from batchmill.store.standing import list_standings
from batchmill.store.worker import renew_leases
from store.rows import (
    LAPSED,
    LEASE,
    MINE,
    NOW,
    THEIRS,
    a_batch,
    a_slice,
    add_batch,
    add_organisations,
    add_running,
    blobs_by_key,
    meanwhile,
    ordinals,
    stuck_ids,
)


@pytest.fixture(autouse=True)
async def _organisations(database: Database) -> None:
    await database.write(add_organisations)


def claim(tx: Transaction, batch_id: str = "batch_1", *, worker_id: str = "w1", lease: float = LEASE) -> Slice | None:
    """Claim the first free Slice of a batch."""
    claimed = claim_slices(tx, batch_id=batch_id, count=1, models=["m"], worker_id=worker_id, lease=lease)
    return claimed[0][0] if claimed else None


def claim_all(
    tx: Transaction, worker_id: str = "w1", *, models: Sequence[str] = ("m",), count: int = 9, lease: float = LEASE
) -> Sequence[tuple[Slice, bool]]:
    """Claim the first Slices of the batch, as many as `count`."""
    return claim_slices(tx, batch_id="batch_1", count=count, models=models, worker_id=worker_id, lease=lease)


def record(tx: Transaction, *, epoch: int, ordinal: int = 0, done: bytes = b"\x03", closed: bool = False) -> bool:
    """Record two lines of a Slice as done."""
    return record_done(tx, batch_id="batch_1", ordinal=ordinal, epoch=epoch, done=done, closed=closed)


def candidates(tx: Transaction) -> list[Candidate]:
    """Return the batches that have a Slice to claim."""
    return list(list_candidates(tx, models=["m"], worker_id="w0", limit=9))


def a_segment(slice_: int = 0, seq: int = 1, *, batch_id: str = "batch_1", key: str = "commit_1") -> Segment:
    """Return a Segment with a checksum and an offset beyond 32 bits."""
    return Segment(
        batch_id=batch_id,
        organisation_id=MINE,
        slice=slice_,
        seq=seq,
        blob_key=key,
        offset=5_000_000_000,
        bytes=7,
        lines=2,
        crc32=0xFFFFFFFF,
    )


async def test_slices_are_claimed_in_the_order_of_the_plan(database: Database) -> None:
    """Each claim takes the first free Slice under a new epoch, until none is left."""

    def statements(tx: Transaction) -> list[Slice | None]:
        add_running(tx, slices=2)
        return [claim(tx) for _ in range(3)]

    taken = await database.write(statements)
    assert ordinals(taken) == [0, 1]
    assert taken[0] is not None
    assert (taken[0].epoch, taken[0].done, taken[0].first, taken[0].lines) == (1, b"\0", 0, 8)


async def test_an_owner_that_died_is_counted_until_a_commit_stands(database: Database) -> None:
    """A Slice counts the owners whose lease lapsed; one that gave it back is none, and a commit ends the count."""

    def statements(tx: Transaction) -> list[tuple[int, bool]]:
        add_running(tx, slices=1)
        counts = []
        for worker, lease in (("w1", LAPSED), ("w2", LAPSED), ("w3", LEASE)):
            [(held, taken_over)] = claim_all(tx, worker, lease=lease)
            counts.append((held.crashes, taken_over))
        release_slice(tx, batch_id="batch_1", ordinal=0, epoch=3)
        for worker in ("w4", "w5"):
            [(held, taken_over)] = claim_all(tx, worker, lease=LAPSED)
            counts.append((held.crashes, taken_over))
            record(tx, epoch=held.epoch)
        return counts

    expected = [(0, False), (1, True), (2, True), (2, False), (1, True)]
    assert await database.write(statements) == expected


async def test_slices_are_claimed_together(database: Database) -> None:
    """The first free ones in the order of the Plan; only a lapsed one counts a crash, and what is held stays."""

    def statements(tx: Transaction) -> list[list[tuple[int, int, int, bool]]]:
        add_running(tx, slices=6)
        claim_all(tx, "w1", count=1)
        claim_all(tx, "w2", count=1)
        claim_all(tx, "w3", count=1, lease=LAPSED)
        return [
            [(held.ordinal, held.epoch, held.crashes, over) for held, over in claim_all(tx, worker, count=3)]
            for worker in ("w4", "w5")
        ]

    expected = [[(2, 2, 1, True), (3, 1, 0, False), (4, 1, 0, False)], [(5, 1, 0, False)]]
    assert await database.write(statements) == expected


async def test_deaths_over_a_lone_line_are_its_own(database: Database) -> None:
    """The deaths of owners that sent one line alone are counted for that line, and end with it or with a commit.

    An owner that died before it sent the line again has not died of it.
    """

    def statements(tx: Transaction) -> list[tuple[int | None, int]]:
        add_running(tx, slices=1)
        lone: list[tuple[int | None, int]] = []
        for number, line in enumerate((3, 3, 4, None, 4)):
            held = claim(tx, worker_id=f"w{number}", lease=LAPSED)
            assert held is not None
            lone.append((held.alone, held.alone_crashes))
            assert mark_alone(tx, batch_id="batch_1", ordinal=0, epoch=held.epoch, line=line)
            assert not mark_alone(tx, batch_id="batch_1", ordinal=0, epoch=held.epoch - 1, line=7)
        for worker in ("w9", "w10"):
            void_slices(tx, worker_id=worker)
            held = claim(tx, worker_id=worker)
            assert held is not None
            lone.append((held.alone, held.alone_crashes))
        record(tx, epoch=held.epoch)
        lone.extend((held.alone, held.alone_crashes) for held in list_slices(tx, batch_id="batch_1"))
        return lone

    expected = [(None, 0), (3, 1), (3, 2), (4, 1), (None, 0), (4, 1), (4, 1), (None, 0)]
    assert await database.write(statements) == expected


async def test_what_may_have_been_sent_outlives_its_sender(database: Database) -> None:
    """The next owner reads which lines may have been sent; who gives the Slice back says what is left of them."""

    def statements(tx: Transaction) -> list[bytes | None]:
        add_running(tx, slices=1)
        seen: list[bytes | None] = []
        for worker, sent in (("w1", b"\x0f"), ("w2", b"\xff")):
            held = claim(tx, worker_id=worker, lease=LAPSED)
            assert held is not None
            seen.append(held.sent)
            assert mark_sent(tx, batch_id="batch_1", ordinal=0, epoch=held.epoch, sent=sent)
            assert not mark_sent(tx, batch_id="batch_1", ordinal=0, epoch=held.epoch - 1, sent=b"\0")
        held = claim(tx, worker_id="w3")
        assert held is not None
        seen.append(held.sent)
        release_slice(tx, batch_id="batch_1", ordinal=0, epoch=held.epoch, sent=b"\x01")
        seen.extend(held.sent for held in list_slices(tx, batch_id="batch_1"))
        return seen

    assert await database.write(statements) == [None, b"\x0f", b"\xff", b"\x01"]


async def test_slices_are_added_open_and_unowned(database: Database) -> None:
    """A Slice comes back as it was added."""
    await database.write(lambda tx: add_running(tx, slices=0))
    added = [a_slice("batch_1", n, lines=256) for n in (1, 0)]
    await database.write(lambda tx: insert_slices(tx, added))
    assert await database.read(lambda tx: list_slices(tx, batch_id="batch_1")) == added[::-1]


async def test_only_a_batch_in_progress_has_slices_to_claim(database: Database) -> None:
    """From the moment a batch is closing no Slice of it is claimed."""

    def statements(tx: Transaction) -> tuple[Slice | None, list[Candidate]]:
        add_running(tx)
        advance(tx, batch_id="batch_1", status=Status.IN_PROGRESS, event=Event.CANCEL, now=NOW)
        return claim(tx), candidates(tx)

    assert await database.write(statements) == (None, [])


async def test_a_claim_names_its_models(database: Database) -> None:
    """A Slice of a model that the worker cannot serve is neither offered nor taken."""

    def statements(tx: Transaction) -> list[tuple[Slice, bool] | None]:
        add_running(tx, slices=0)
        insert_slices(tx, [a_slice("batch_1", 0, model="large"), a_slice("batch_1", 1, model="small")])
        assert not list_candidates(tx, models=["none"], worker_id="w0", limit=9)
        assert not list_candidates(tx, models=[], worker_id="w0", limit=9)
        return [
            [(held.ordinal, taken_over) for held, taken_over in claim_all(tx, models=models)]
            for models in (["none"], [], ["small", "none"])
        ]

    assert await database.write(statements) == [[], [], [(1, False)]]


async def test_candidates_are_ordered_by_deadline(database: Database) -> None:
    """Batches with a free Slice are named nearest deadline first; those with none are not named."""

    def statements(tx: Transaction) -> list[Candidate]:
        for name, late in (("batch_1", 30), ("batch_2", 10), ("batch_3", 20)):
            add_batch(tx, a_batch(name, organisation_id=THEIRS, expires_at=NOW + late), status=Status.IN_PROGRESS)
            insert_slices(tx, [a_slice(name, 0)])
        claim(tx, "batch_3")
        return candidates(tx)

    found = await database.write(statements)
    assert [candidate.batch_id for candidate in found] == ["batch_2", "batch_1"]
    assert (found[0].organisation, found[0].expires_at) == (THEIRS, NOW + 10)


async def test_a_slice_that_lapsed_is_taken_over_and_its_first_owner_is_fenced_off(database: Database) -> None:
    """After a takeover neither results nor a release of the first owner are accepted; the second's are."""

    def statements(tx: Transaction) -> list[object]:
        add_running(tx, slices=1)
        claim(tx, lease=LAPSED)
        again = claim(tx, worker_id="w2")
        stale = [record(tx, epoch=1), release_slice(tx, batch_id="batch_1", ordinal=0, epoch=1)]
        held = [again.epoch if again else None, claim(tx), record(tx, epoch=2, done=b"\x01")]
        return [*stale, *held, list_slices(tx, batch_id="batch_1")[0].done]

    assert await database.write(statements) == [False, False, 2, None, True, b"\x01"]


async def test_a_lapsed_slice_that_nobody_took_may_still_be_written(database: Database) -> None:
    """The fence is the epoch, not the time: nothing is lost by being late while nobody else came."""

    def statements(tx: Transaction) -> bool:
        add_running(tx, slices=1)
        claim(tx, lease=LAPSED)
        return record(tx, epoch=1)

    assert await database.write(statements)


async def test_a_released_slice_is_claimed_with_its_holes(database: Database) -> None:
    """The next owner of a Slice gets the bitmap of what is done, under the next epoch."""

    def statements(tx: Transaction) -> Slice | None:
        add_running(tx, slices=1)
        claim(tx)
        record(tx, epoch=1, done=b"\x05")
        assert release_slice(tx, batch_id="batch_1", ordinal=0, epoch=1)
        return claim(tx, worker_id="w2")

    again = await database.write(statements)
    assert again is not None
    assert (again.done, again.epoch) == (b"\x05", 2)


async def test_a_closed_slice_is_done_with(database: Database) -> None:
    """A closed Slice is neither claimed nor written again, even by its last owner."""

    def statements(tx: Transaction) -> list[object]:
        add_running(tx, slices=1)
        claim(tx, lease=LAPSED)
        return [record(tx, epoch=1, closed=True), record(tx, epoch=1), claim(tx), candidates(tx)]

    assert await database.write(statements) == [True, False, None, []]


async def test_a_closing_batch_is_fenced(database: Database) -> None:
    """Once the Finalizer took the open Slices no runner's commit slips in; closed ones keep their epoch."""

    def statements(tx: Transaction) -> list[object]:
        add_running(tx, slices=3)
        claim(tx)
        claim(tx)
        record(tx, epoch=1, closed=True)
        advance(tx, batch_id="batch_1", status=Status.IN_PROGRESS, event=Event.CANCEL, now=NOW)
        fence_slices(tx, batch_id="batch_1")
        late = record(tx, epoch=1, ordinal=1)
        return [late, claim(tx), [held.epoch for held in list_slices(tx, batch_id="batch_1")]]

    assert await database.write(statements) == [False, None, [1, 2, 1]]


async def test_two_claimers_never_share_a_slice(database: Database) -> None:
    """Eight workers that claim at the same time get every Slice, each once."""
    await database.write(lambda tx: add_running(tx, slices=40))

    async def work(worker_id: str) -> list[int]:
        taken: list[int] = []
        while (held := await database.write(lambda tx: claim(tx, worker_id=worker_id))) is not None:
            taken.append(held.ordinal)
        return taken

    taken = await asyncio.gather(*(work(f"w{n}") for n in range(8)))
    assert sorted(ordinal for own in taken for ordinal in own) == list(range(40))


async def test_a_claim_does_not_wait_for_another(database: Database) -> None:
    """On PostgreSQL a Slice that an open transaction has just claimed is passed over at once."""
    if not isinstance(database, PostgresDatabase):  # SQLite has one writer
        return
    loop = asyncio.get_running_loop()

    def statements(tx: Transaction) -> list[Slice | None]:
        return [claim(tx), meanwhile(loop, database.write(lambda inner: claim(inner, worker_id="w2")))]

    await database.write(lambda tx: add_running(tx, slices=2))
    assert ordinals(await database.write(statements)) == [0, 1]


async def test_a_takeover_in_the_middle_of_a_commit_waits_and_loses(database: Database) -> None:
    """On PostgreSQL a claim of a lapsed Slice passes over one whose owner is just committing."""
    if not isinstance(database, PostgresDatabase):  # SQLite has one writer
        return
    loop = asyncio.get_running_loop()

    def prepare(tx: Transaction) -> None:
        add_running(tx, slices=1)
        claim(tx, lease=LAPSED)

    def statements(tx: Transaction) -> tuple[bool, Slice | None]:
        return record(tx, epoch=1), meanwhile(loop, database.write(lambda inner: claim(inner, worker_id="w2")))

    await database.write(prepare)
    assert await database.write(statements) == (True, None)
    again = await database.write(lambda tx: claim(tx, worker_id="w2"))
    assert again is not None
    assert again.done == b"\x03"


async def test_segments_come_back_in_order(database: Database) -> None:
    """Segments are kept as they are and listed Slice by Slice, the oldest first."""
    added = [a_segment(1, 2), a_segment(0, 3), a_segment(0, 1)]

    def statements(tx: Transaction) -> None:
        add_running(tx)
        insert_ready(tx, key="commit_1", organisation_id=MINE, size=9, refs=3, now=NOW)
        insert_segments(tx, added)

    await database.write(statements)
    assert await database.read(lambda tx: list_segments(tx, batch_id="batch_1")) == [added[2], added[1], added[0]]


async def test_a_slice_has_one_segment_a_commit(database: Database) -> None:
    """A second Segment of the same Slice and `seq`, or one without its blob, is refused by the database itself."""
    await database.write(add_running)
    await database.write(lambda tx: insert_ready(tx, key="commit_1", organisation_id=MINE, size=9, refs=1, now=NOW))
    for segments in ([a_segment(), a_segment()], [a_segment(key="nowhere")]):
        with pytest.raises(IntegrityError):
            await database.write(lambda tx, segments=segments: insert_segments(tx, segments))  # type: ignore[misc] - bound early


async def test_slices_go_in_portions(database: Database) -> None:
    """A portion takes the first Slices with all their Segments, and says whether there are more."""

    def statements(tx: Transaction) -> list[object]:
        for name in ("batch_1", "batch_2"):
            add_running(tx, name, slices=3)
        insert_ready(tx, key="commit_1", organisation_id=MINE, size=9, refs=9, now=NOW)
        insert_segments(tx, [a_segment(n, seq) for n, seq in ((0, 1), (1, 1), (1, 2), (2, 1))])
        insert_segments(tx, [a_segment(0, 1, batch_id="batch_2")])
        gone: list[object] = []
        for _ in range(3):
            gone.append(delete_slices(tx, batch_id="batch_1", limit=2))
            gone.append(ordinals(list_slices(tx, batch_id="batch_1")))
        return [*gone, len(list_slices(tx, batch_id="batch_2")), len(list_segments(tx, batch_id="batch_2"))]

    assert await database.write(statements) == [
        ([("commit_1", 3)], True),
        [2],
        ([("commit_1", 1)], False),
        [],
        ([], False),
        [],
        3,
        1,
    ]


async def test_two_sweepers_drop_a_reference_once(database: Database) -> None:
    """Two that clear the same final batch at the same time drop its references once; other batches keep theirs."""

    def prepare(tx: Transaction) -> None:
        for name in ("batch_1", "batch_2"):
            add_running(tx, name)
        insert_ready(tx, key="commit_1", organisation_id=MINE, size=9, refs=4, now=NOW)
        insert_segments(tx, [a_segment(n, 1, batch_id=name) for name in ("batch_1", "batch_2") for n in (0, 1)])
        for status, happened in ((Status.IN_PROGRESS, Event.CANCEL), (Status.CANCELLING, Event.SEALED)):
            advance(tx, batch_id="batch_1", status=status, event=happened, now=NOW)

    def sweep(tx: Transaction) -> None:
        for batch in finished_uncleared(tx, limit=9):
            refs, left = delete_slices(tx, batch_id=batch.id, limit=9)
            for key, count in refs:
                drop_refs(tx, key=key, count=count)
            if not left and clear_batch(tx, batch_id=batch.id):
                for held in (batch.input_key, batch.plan_key):
                    drop_refs(tx, key=str(held))

    await database.write(prepare)
    await asyncio.gather(*(database.write(sweep) for _ in range(3)))
    assert await database.read(blobs_by_key) == {
        "batch_1-input": ("doomed", 0),
        "batch_1-plan": ("doomed", 0),
        "batch_2-input": ("ready", 1),
        "batch_2-plan": ("ready", 1),
        "commit_1": ("ready", 2),
    }
    assert await database.read(lambda tx: list_slices(tx, batch_id="batch_1")) == []
    assert len(await database.read(lambda tx: list_segments(tx, batch_id="batch_2"))) == 2


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (claim, "slice USING INDEX ix_slice_open (batch_id=? AND open=?)"),
        (candidates, "slice USING INDEX ix_slice_open (batch_id=? AND open=?)"),
        (lambda tx: renew_leases(tx, worker_id="w1", lease=LEASE), "batch USING INDEX ix_batch_owner (owner=?)"),
        (lambda tx: renew_leases(tx, worker_id="w1", lease=LEASE), "slice USING INDEX ix_slice_owner (owner=?)"),
        (lambda tx: finished_uncleared(tx, limit=1), "batch USING INDEX ix_batch_uncleared (status=?)"),
        (lambda tx: list_standings(tx, limit=1), "batch USING INDEX ix_batch_status (status=?)"),
        (lambda tx: list_standings(tx, limit=1), "slice USING INDEX ix_slice_owner (owner>?)"),
        (stuck_ids, "batch USING INDEX ix_batch_status (status=?)"),
        (lambda tx: read_alerts(tx, now=NOW), "batch USING INDEX ix_batch_status (status=?)"),
    ],
)
async def test_what_runs_often_is_supported_by_an_index(database: Database, statement: object, index: str) -> None:
    """On SQLite neither a claim nor a renewal nor a sweep looks at every batch or Slice there ever was."""
    if not isinstance(database, SqliteDatabase):  # PostgreSQL chooses by statistics
        return
    plan = await database.write(lambda tx: plan_of(tx, statement))
    assert any(f"SEARCH {index}" in step for step in plan), plan
    assert not any(step.startswith(("SCAN slice", "SCAN batch")) for step in plan), plan


def plan_of(tx: Transaction, statement: object) -> list[str]:
    """Return SQLite's plan of every SQL statement that runs."""
    plans: list[str] = []

    def explain(connection: Connection, _cursor: object, sql: str, parameters: tuple[object, ...], *_: object) -> None:
        if not sql.startswith("EXPLAIN"):
            plans.extend(row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters))

    assert callable(statement)
    event.listen(tx.connection, "before_cursor_execute", explain)
    statement(tx)
    event.remove(tx.connection, "before_cursor_execute", explain)
    return plans


async def test_a_worker_does_not_claim_its_own_lapsed_slice(database: Database) -> None:
    """A full disk lets a live worker's rows lapse: what it still holds is for others to take over, not for itself."""

    def statements(tx: Transaction) -> list[object]:
        add_running(tx, slices=1)
        claim(tx, worker_id="w1", lease=LAPSED)
        mine = list_candidates(tx, models=["m"], worker_id="w1", limit=9)
        theirs = list_candidates(tx, models=["m"], worker_id="w2", limit=9)
        again = claim(tx, worker_id="w1")
        [(_, taken_over)] = claim_all(tx, "w2")
        return [list(mine), [c.batch_id for c in theirs], again, taken_over]

    assert await database.write(statements) == [[], ["batch_1"], None, True]


async def test_a_batch_that_is_held_back_is_no_candidate(database: Database) -> None:
    """Until its time has come nobody looks for its Slices; a batch that is not in progress is left as it is."""

    def statements(tx: Transaction) -> list[list[str]]:
        for name in ("batch_1", "batch_2"):
            add_running(tx, name, slices=1)
        add_batch(tx, a_batch("batch_3"), status=Status.CANCELLING)
        seen = []
        for seconds in (60.0, LAPSED):
            for name in ("batch_1", "batch_3"):
                hold_back(tx, batch_id=name, seconds=seconds)
            seen.append([candidate.batch_id for candidate in candidates(tx)])
            assert has_batch(tx, statuses=[Status.CANCELLING])
        return seen

    assert await database.write(statements) == [["batch_2"], ["batch_1", "batch_2"]]


async def test_a_fenced_batch_is_settled_at_once(database: Database) -> None:
    """Nobody owns a fenced Slice: who comes after a Finalizer that failed need not wait for a runner's lease."""

    def settled(tx: Transaction) -> bool:
        return has_batch(tx, statuses=[Status.CANCELLING], ready=is_settled(tx, now=NOW, grace=30))

    def statements(tx: Transaction) -> list[bool]:
        add_running(tx, slices=2)
        claim(tx)
        advance(tx, batch_id="batch_1", status=Status.IN_PROGRESS, event=Event.CANCEL, now=NOW)
        before = settled(tx)
        fence_slices(tx, batch_id="batch_1")
        renew_leases(tx, worker_id="w1", lease=LEASE)
        return [before, settled(tx)]

    assert await database.write(statements) == [False, True]
