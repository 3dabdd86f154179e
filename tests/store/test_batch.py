"""The statements over batches."""

from collections.abc import Callable

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from batchmill.spec.objects import Usage
from batchmill.spec.states import FINAL, STAMP, TRANSITIONS, Event, Status
from batchmill.store.backlog import count_statuses
from batchmill.store.batch import (
    TRIES,
    Batch,
    advance,
    batches_by_id,
    batches_drained,
    batches_past_window,
    claim_batch,
    clear_batch,
    find_batch,
    finished_uncleared,
    has_batch,
    holds_batch,
    insert_batch,
    is_settled,
    list_batches,
    put_off,
    release_batch,
    retry_stuck,
    set_waiting,
    unstick,
)
from batchmill.store.database import Database, Transaction
from batchmill.store.slice import claim_slices, record_done, release_slice
from batchmill.store.tables import batch as batch_table
from batchmill.store.tally import Progress, record_progress
from store.rows import (
    LAPSED,
    LEASE,
    MINE,
    NOW,
    THEIRS,
    a_batch,
    add_batch,
    add_organisations,
    add_running,
    get_batch,
    status_of,
    stuck_ids,
)

MOVES = [(status, event, target) for status, row in TRANSITIONS.items() for event, target in row.items()]
NOTHING = {"completed": 0, "failed": 0, "closed_slices": 0, "usage": Usage()}


@pytest.fixture(autouse=True)
async def _organisations(database: Database) -> None:
    await database.write(add_organisations)


def claim(tx: Transaction, *statuses: Status, worker_id: str = "w1", lease: float = LEASE) -> Batch | None:
    """Claim the oldest batch in one of these statuses."""
    return claim_batch(tx, worker_id=worker_id, statuses=statuses or (Status.VALIDATING,), lease=lease)


async def test_a_batch_comes_back_as_it_was_added(database: Database) -> None:
    """Every fact of a new batch is kept, metadata with its own characters included."""
    added = a_batch(metadata={"owner": "Zoë 北京", "nul": "a\0b"})
    await database.write(lambda tx: insert_batch(tx, added))
    assert await database.read(get_batch) == added


async def test_a_new_batch_is_validating(database: Database) -> None:
    """A batch begins in `validating`, whatever its maker believes."""
    await database.write(lambda tx: insert_batch(tx, a_batch(status=Status.COMPLETED)))
    assert await database.read(lambda tx: status_of(tx, "batch_1")) is Status.VALIDATING


async def test_a_batch_of_another_organisation_is_unknown(database: Database) -> None:
    """An id of another organisation finds nothing and lists nothing."""
    await database.write(add_batch)
    assert await database.read(lambda tx: find_batch(tx, organisation_id=THEIRS, batch_id="batch_1")) is None
    assert await database.read(lambda tx: list_batches(tx, organisation_id=THEIRS, after=None, limit=9)) == []


async def test_batches_are_listed_newest_first(database: Database) -> None:
    """A page goes on beyond its cursor, in falling order of ids, and has at most `limit` batches."""

    def page(tx: Transaction, after: str | None, limit: int) -> list[str]:
        return [b.id for b in list_batches(tx, organisation_id=MINE, after=after, limit=limit)]

    def add(tx: Transaction) -> None:
        for name in ("batch_09", "batch_0a", "batch_10", "batch_a0"):
            add_batch(tx, a_batch(name))

    await database.write(add)
    assert await database.read(lambda tx: page(tx, None, 3)) == ["batch_a0", "batch_10", "batch_0a"]
    assert await database.read(lambda tx: page(tx, "batch_0a", 3)) == ["batch_09"]


async def test_the_loops_see_batches_of_every_organisation(database: Database) -> None:
    """Batches by id are found whosever they are; ids that are not there are left out."""

    def statements(tx: Transaction) -> None:
        add_batch(tx, a_batch("batch_1"))
        add_batch(tx, a_batch("batch_2", organisation_id=THEIRS), status=Status.CANCELLING)

    await database.write(statements)
    ids = ["batch_1", "batch_2", "batch_3"]
    found = await database.read(lambda tx: batches_by_id(tx, batch_ids=ids))
    assert {key: batch.organisation_id for key, batch in found.items()} == {"batch_1": MINE, "batch_2": THEIRS}
    assert await database.read(lambda tx: batches_by_id(tx, batch_ids=[])) == {}


@pytest.mark.parametrize(("status", "event", "target"), MOVES)
async def test_an_event_moves_a_batch(database: Database, status: Status, event: Event, target: Status) -> None:
    """Each event of the table leads where the table says, and stamps the status that is entered."""

    def statements(tx: Transaction) -> Batch:
        add_batch(tx, status=status)
        assert advance(tx, batch_id="batch_1", status=status, event=event, now=NOW + 3600)
        return get_batch(tx)

    moved = (await database.write(statements)).object
    assert moved.status is target
    stamped = getattr(moved, STAMP[target])
    assert stamped == (NOW if target is status else NOW + 3600)


async def test_a_wrong_status_moves_nothing(database: Database) -> None:
    """An event that comes too late returns False and writes none of its values."""

    def statements(tx: Transaction) -> tuple[Batch, bool, Batch]:
        add_batch(tx, status=Status.CANCELLING)
        before = get_batch(tx)
        moved = advance(
            tx,
            batch_id="batch_1",
            status=Status.VALIDATING,
            event=Event.ACCEPTED,
            now=NOW + 5,
            values={"total": 7},
        )
        return before, moved, get_batch(tx)

    before, moved, after = await database.write(statements)
    assert not moved
    assert after == before


async def test_a_stale_epoch_moves_nothing(database: Database) -> None:
    """An event of a worker whose lease was taken over returns False; the new holder's moves the batch."""

    def statements(tx: Transaction) -> tuple[bool, Status, bool]:
        add_batch(tx)
        old, new = claim(tx, lease=LAPSED), claim(tx, worker_id="w2")
        assert old is not None
        assert new is not None
        late = [
            advance(tx, batch_id="batch_1", status=Status.VALIDATING, event=Event.REJECTED, now=NOW, epoch=b.epoch)
            for b in (old,)
        ]
        status = status_of(tx, "batch_1")
        fresh = advance(
            tx, batch_id="batch_1", status=Status.VALIDATING, event=Event.REJECTED, now=NOW, epoch=new.epoch
        )
        return late[0], status, fresh

    assert await database.write(statements) == (False, Status.VALIDATING, True)


async def test_an_event_that_means_nothing_is_refused(database: Database) -> None:
    """An event that the table does not know in a status raises, and the batch stays as it is."""
    await database.write(add_batch)
    for status, event in [(status, event) for status in Status for event in Event if event not in TRANSITIONS[status]]:
        with pytest.raises(ValueError, match="knows no"):
            await database.write(
                lambda tx, s=status, e=event: advance(tx, batch_id="batch_1", status=s, event=e, now=NOW)
            )
    assert await database.read(lambda tx: status_of(tx, "batch_1")) is Status.VALIDATING


async def test_values_cannot_write_a_status(database: Database) -> None:
    """The status that is written is the table's, even if the values hold another."""

    def statements(tx: Transaction) -> Status:
        add_batch(tx)
        values = {"status": "completed"}
        advance(tx, batch_id="batch_1", status=Status.VALIDATING, event=Event.CANCEL, now=NOW, values=values)
        return status_of(tx, "batch_1")

    assert await database.write(statements) is Status.CANCELLING


async def test_the_database_knows_eight_statuses(database: Database) -> None:
    """A status that is none of the eight is refused by the database itself."""
    await database.write(add_batch)
    with pytest.raises(IntegrityError):
        await database.write(lambda tx: tx.connection.execute(text("UPDATE batch SET status = 'paused'")))


async def test_the_oldest_free_batch_is_claimed(database: Database) -> None:
    """A claim takes the oldest batch in one of the statuses that nobody holds, with a new epoch; then none is left."""

    def statements(tx: Transaction) -> None:
        for name in ("batch_2", "batch_1"):
            add_batch(tx, a_batch(name))
        add_batch(tx, a_batch("batch_0"), status=Status.CANCELLING)

    await database.write(statements)
    first, second, none = [await database.write(claim) for _ in range(3)]
    assert first is not None
    assert second is not None
    assert (first.id, first.epoch, second.id, none) == ("batch_1", 1, "batch_2", None)


async def test_a_lapsed_lease_is_nobodys(database: Database) -> None:
    """A batch whose lease has lapsed is claimed again, under the next epoch."""
    await database.write(add_batch)
    await database.write(lambda tx: claim(tx, lease=LAPSED))
    again = await database.write(lambda tx: claim(tx, worker_id="w2"))
    assert again is not None
    assert again.epoch == 2
    assert await database.write(claim) is None


async def test_a_batch_is_released_by_its_holder_only(database: Database) -> None:
    """A release with a stale epoch returns False and leaves the lease; the holder's frees the batch."""

    def statements(tx: Transaction) -> list[object]:
        add_batch(tx)
        claim(tx, lease=LAPSED)
        claim(tx, worker_id="w2")
        stale, held = release_batch(tx, batch_id="batch_1", epoch=1), claim(tx)
        mine, free = release_batch(tx, batch_id="batch_1", epoch=2), claim(tx)
        return [stale, held, mine, free is not None]

    assert await database.write(statements) == [False, None, True, True]


def _never_claimed(tx: Transaction) -> None:
    add_running(tx)


def _released(tx: Transaction) -> None:
    add_running(tx)
    claim_slices(tx, batch_id="batch_1", count=1, models=["m"], worker_id="w1", lease=LEASE)
    release_slice(tx, batch_id="batch_1", ordinal=0, epoch=1)


def _lapsed(tx: Transaction) -> None:
    add_running(tx)
    claim_slices(tx, batch_id="batch_1", count=1, models=["m"], worker_id="w1", lease=LAPSED)


def _held(tx: Transaction) -> None:
    add_running(tx)
    claim_slices(tx, batch_id="batch_1", count=1, models=["m"], worker_id="w1", lease=LEASE)


def _closed(tx: Transaction) -> None:
    _held(tx)
    record_done(tx, batch_id="batch_1", ordinal=0, epoch=1, done=b"\xff", closed=True)


@pytest.mark.parametrize(
    ("prepare", "seconds", "settled"),
    [
        (_never_claimed, 0, True),
        (_released, 0, True),
        (_closed, 0, True),
        (_lapsed, 0, True),
        (_held, 29, False),
        (_held, 30, True),
    ],
)
async def test_a_closing_batch_is_settled_once_its_slices_are_let_go(
    database: Database, prepare: Callable[[Transaction], None], seconds: int, settled: bool
) -> None:
    """A closing batch is claimed when no live lease is on its Slices, or the grace has passed."""

    def statements(tx: Transaction) -> bool:
        prepare(tx)
        advance(tx, batch_id="batch_1", status=Status.IN_PROGRESS, event=Event.CANCEL, now=NOW)
        ready = is_settled(tx, now=NOW + seconds, grace=30)
        return claim_batch(tx, worker_id="f", statuses=[Status.CANCELLING], lease=LEASE, ready=ready) is not None

    assert await database.write(statements) is settled


async def test_the_grace_of_an_expired_window_begins_when_it_closes(database: Database) -> None:
    """Without a cancel the grace counts from `expires_at`; another batch's Slices do not matter."""

    def settled(tx: Transaction, now: int) -> bool:
        ready = is_settled(tx, now=now, grace=30)
        return claim_batch(tx, worker_id="f", statuses=[Status.FINALIZING], lease=LAPSED, ready=ready) is not None

    def statements(tx: Transaction) -> list[bool]:
        _held(tx)
        add_running(tx, "batch_2")
        claim_slices(tx, batch_id="batch_2", count=1, models=["m"], worker_id="w1", lease=LEASE)
        advance(tx, batch_id="batch_1", status=Status.IN_PROGRESS, event=Event.WINDOW_PASSED, now=NOW + 3600)
        return [settled(tx, NOW + 3600 + 29), settled(tx, NOW + 3600 + 30)]

    assert await database.write(statements) == [False, True]


async def test_progress_adds_up(database: Database) -> None:
    """Each group commit adds its counts, tokens and closed Slices to the batch, and takes the next `seq`."""

    def statements(tx: Transaction) -> tuple[Progress, Progress]:
        add_running(tx, slices=2)
        usage = Usage(input_tokens=10, cached_tokens=1, output_tokens=2_000_000_000, reasoning_tokens=4)
        first = record_progress(tx, batch_id="batch_1", completed=3, failed=1, closed_slices=1, usage=usage)
        return first, record_progress(tx, batch_id="batch_1", completed=4, failed=2, closed_slices=1, usage=usage)

    first, second = await database.write(statements)
    assert first == Progress(seq=1, open_slices=1, status=Status.IN_PROGRESS, model=None, key_id=None)
    assert second == Progress(seq=2, open_slices=0, status=Status.IN_PROGRESS, model=None, key_id=None)
    seen = (await database.read(get_batch)).object
    assert seen.counts.wire() == {"completed": 7, "failed": 3, "total": 16}
    assert seen.usage == Usage(input_tokens=20, cached_tokens=2, output_tokens=4_000_000_000, reasoning_tokens=8)


@pytest.mark.parametrize("share", [{"completed": 9, "failed": 8}, {"closed_slices": 3}])
async def test_a_batch_has_no_more_results_than_lines(database: Database, share: dict[str, int]) -> None:
    """Counts beyond the total, or more closed Slices than there are, are refused by the database itself."""
    await database.write(add_running)
    facts = NOTHING | share
    with pytest.raises(IntegrityError):
        await database.write(lambda tx: record_progress(tx, batch_id="batch_1", **facts))  # type: ignore[arg-type] - NOTHING's keys are its parameters
    assert (await database.read(get_batch)).object.counts.completed == 0


async def test_windows_close_on_batches_that_are_not_done(database: Database) -> None:
    """Only batches that are validated or run, with `expires_at` reached, are past their window."""

    def statements(tx: Transaction) -> None:
        for status in Status:
            add_batch(tx, a_batch(f"batch_{status}"), status=status)

    await database.write(statements)
    assert await database.read(lambda tx: batches_past_window(tx, now=NOW + 3599, limit=9)) == []
    late = await database.read(lambda tx: batches_past_window(tx, now=NOW + 3600, limit=9))
    assert sorted(late) == [
        ("batch_in_progress", Status.IN_PROGRESS),
        ("batch_validating", Status.VALIDATING),
    ]


async def test_a_batch_without_open_slices_is_drained(database: Database) -> None:
    """A batch in progress whose last Slice was closed is named, one with an open Slice is not."""

    def statements(tx: Transaction) -> list[str]:
        for name in ("batch_1", "batch_2"):
            add_running(tx, name, slices=1)
        record_progress(tx, batch_id="batch_1", completed=8, failed=0, closed_slices=1, usage=Usage())
        return list(batches_drained(tx, limit=9))

    assert await database.write(statements) == ["batch_1"]


async def test_statuses_are_counted(database: Database) -> None:
    """Batches are counted by status, and asked for by it."""

    def statements(tx: Transaction) -> None:
        add_batch(tx, a_batch("batch_1"))
        add_batch(tx, a_batch("batch_2"), status=Status.CANCELLED)
        add_batch(tx, a_batch("batch_3", organisation_id=THEIRS), status=Status.CANCELLED)

    await database.write(statements)
    assert await database.read(count_statuses) == {Status.VALIDATING: 1, Status.CANCELLED: 2}
    assert await database.read(lambda tx: has_batch(tx, statuses=[Status.FAILED, Status.CANCELLED]))
    assert not await database.read(lambda tx: has_batch(tx, statuses=[Status.FAILED]))


async def test_final_batches_are_cleared_once(database: Database) -> None:
    """Every final batch that refers to its input is named; clearing it says True once and then never again."""

    def statements(tx: Transaction) -> None:
        for status in Status:
            add_batch(tx, a_batch(f"batch_{status}"), status=status)

    await database.write(statements)
    named = await database.read(lambda tx: finished_uncleared(tx, limit=99))
    assert {batch.object.status for batch in named} == FINAL
    for said in (True, False):
        assert await database.write(lambda tx: clear_batch(tx, batch_id="batch_completed")) is said
    named = await database.read(lambda tx: finished_uncleared(tx, limit=99))
    assert {batch.object.status for batch in named} == FINAL - {Status.COMPLETED}
    cleared = await database.read(lambda tx: get_batch(tx, "batch_completed"))
    assert (cleared.input_key, cleared.plan_key) == (None, None)


async def test_a_cleared_batch_has_no_owner(database: Database) -> None:
    """A batch that expired while it was validated, and whose Validator died, is nobody's once it is cleared."""
    await database.write(add_batch)
    claimed = await database.write(claim)
    assert claimed is not None
    expire = {"status": Status.VALIDATING, "event": Event.WINDOW_PASSED, "now": NOW + 3600}
    assert await database.write(lambda tx: advance(tx, batch_id=claimed.id, **expire))
    assert await database.write(lambda tx: clear_batch(tx, batch_id=claimed.id))
    owners = await database.read(lambda tx: tx.connection.execute(select(batch_table.c.owner)).scalars().all())
    assert owners == [None]


async def test_an_owner_that_died_is_a_failure(database: Database) -> None:
    """Each claim of a lapsed batch counts one; the sixth finds nothing, and the batch is named as stuck."""
    await database.write(add_batch)
    claims = [await database.write(lambda tx: claim(tx, lease=LAPSED)) for _ in range(TRIES + 1)]
    assert [batch.crashes for batch in claims if batch is not None] == list(range(TRIES))
    assert claims[-1] is None
    assert not await database.read(lambda tx: has_batch(tx, statuses=[Status.VALIDATING]))
    assert await database.read(stuck_ids) == ["batch_1"]


@pytest.mark.parametrize("crashed", [True, False])
async def test_a_batch_that_is_put_off_is_left_alone(database: Database, crashed: bool) -> None:
    """Until its time has come nobody takes it, and has_batch says so; only `crashed` counts a failure."""

    def put(tx: Transaction, epoch: int, seconds: float) -> bool:
        return put_off(tx, batch_id="batch_1", epoch=epoch, crashed=crashed, seconds=seconds)

    def waits(tx: Transaction) -> bool:
        return has_batch(tx, statuses=[Status.VALIDATING])

    await database.write(add_batch)
    assert await database.write(claim) is not None
    assert not await database.write(lambda tx: put(tx, 0, 60.0))
    assert await database.write(lambda tx: put(tx, 1, 60.0))
    assert await database.write(claim) is None
    assert not await database.read(waits)
    assert await database.write(lambda tx: put(tx, 1, LAPSED))
    assert await database.read(waits)
    again = await database.write(claim)
    assert again is not None
    assert again.crashes == 2 * crashed


async def test_a_stuck_batch_is_named_and_tried_again(database: Database) -> None:
    """After TRIES failures a batch is stuck, whoever waits; `unstick` gives it all tries again, at once."""

    def fail(tx: Transaction) -> None:
        claimed = claim(tx)
        assert claimed is not None
        put_off(tx, batch_id="batch_1", epoch=claimed.epoch, crashed=True, seconds=LAPSED)
        set_waiting(tx, batch_id="batch_1", waiting="stuck", now=NOW)

    await database.write(add_batch)
    await database.write(lambda tx: add_batch(tx, a_batch("batch_2"), status=Status.FAILED))
    for _ in range(TRIES):
        assert await database.read(stuck_ids) == []
        await database.write(fail)
    assert await database.write(claim) is None
    assert await database.read(stuck_ids) == ["batch_1"]
    await database.write(unstick)
    assert await database.read(stuck_ids) == []
    seen = await database.read(get_batch)
    assert (seen.crashes, seen.waiting, seen.waiting_since) == (0, None, None)
    assert await database.write(claim) is not None


@pytest.mark.parametrize(("status", "event", "target"), MOVES)
async def test_another_status_begins_afresh(database: Database, status: Status, event: Event, target: Status) -> None:
    """A batch that enters another status waits for nothing and has no failure behind it."""

    def statements(tx: Transaction) -> Batch:
        add_batch(tx, status=status)
        claimed = claim_batch(tx, worker_id="w1", statuses=[status], lease=LEASE)
        assert claimed is not None
        put_off(tx, batch_id="batch_1", epoch=claimed.epoch, crashed=True, seconds=60.0)
        set_waiting(tx, batch_id="batch_1", waiting="it failed", now=NOW)
        assert advance(tx, batch_id="batch_1", status=status, event=event, now=NOW + 3600)
        return get_batch(tx)

    moved = await database.write(statements)
    facts = (moved.crashes, moved.waiting, moved.waiting_since)
    assert facts == ((1, "it failed", NOW) if target is status else (0, None, None))
    if target not in FINAL and target is not status:
        assert await database.read(lambda tx: has_batch(tx, statuses=[target]))


async def test_why_a_batch_waits_is_kept_once(database: Database) -> None:
    """A sentence is written when it changes, with the time of that; a final batch has none."""

    def say(tx: Transaction, waiting: str | None, now: int, batch_id: str = "batch_1") -> tuple[bool, object, object]:
        said = set_waiting(tx, batch_id=batch_id, waiting=waiting, now=now)
        batch = get_batch(tx, batch_id)
        return said, batch.waiting, batch.waiting_since

    def statements(tx: Transaction) -> list[tuple[bool, object, object]]:
        add_batch(tx)
        add_batch(tx, a_batch("batch_2"), status=Status.COMPLETED)
        return [
            say(tx, None, NOW),
            say(tx, "a", NOW),
            say(tx, "a", NOW + 1),
            say(tx, "b", NOW + 2),
            say(tx, None, NOW + 3),
            say(tx, "a", NOW, "batch_2"),
        ]

    assert await database.write(statements) == [
        (False, None, None),
        (True, "a", NOW),
        (False, "a", NOW),
        (True, "b", NOW + 2),
        (True, None, None),
        (False, None, None),
    ]


async def test_a_claim_holds_its_batch_until_the_next(database: Database) -> None:
    """The fence of a claim stands until somebody else has claimed."""
    await database.write(add_batch)
    await database.write(lambda tx: claim(tx, lease=LAPSED))
    assert await database.read(lambda tx: holds_batch(tx, batch_id="batch_1", epoch=1))
    await database.write(claim)
    assert not await database.read(lambda tx: holds_batch(tx, batch_id="batch_1", epoch=1))
    assert await database.read(lambda tx: holds_batch(tx, batch_id="batch_1", epoch=2))


async def test_stuck_batches_get_one_more_try(database: Database) -> None:
    """`retry_stuck` gives what is stuck, by failures or by deaths, one try: after that it is stuck again."""

    def fail(tx: Transaction) -> Batch | None:
        return claim(tx, lease=LAPSED)

    await database.write(add_batch)
    for _ in range(TRIES):
        assert await database.write(retry_stuck) == 0
        assert await database.write(fail) is not None
    await database.write(lambda tx: set_waiting(tx, batch_id="batch_1", waiting="stuck", now=NOW))
    assert await database.read(stuck_ids) == ["batch_1"]
    assert await database.write(retry_stuck) == 1
    assert await database.read(stuck_ids) == []
    assert (await database.read(get_batch)).waiting is None
    last = await database.write(fail)
    assert last is not None
    assert last.crashes == TRIES - 1
    assert await database.write(fail) is None
    assert await database.read(stuck_ids) == ["batch_1"]


@pytest.mark.parametrize("status", [Status.VALIDATING, Status.FINALIZING])
async def test_a_cancel_ends_the_lease(database: Database, status: Status) -> None:
    """Whoever validates or finalizes does so in vain from then on, and the cancelled batch can be claimed at once."""

    def cancel(tx: Transaction) -> bool:
        return advance(tx, batch_id="batch_1", status=status, event=Event.CANCEL, now=NOW)

    await database.write(lambda tx: add_batch(tx, status=status))
    held = await database.write(lambda tx: claim_batch(tx, worker_id="w1", statuses=[status], lease=LEASE))
    assert held is not None
    assert await database.write(cancel)
    assert not await database.read(lambda tx: holds_batch(tx, batch_id="batch_1", epoch=held.epoch))
    assert not await database.write(lambda tx: release_batch(tx, batch_id="batch_1", epoch=held.epoch))
    heir = await database.write(lambda tx: claim_batch(tx, worker_id="w2", statuses=[Status.CANCELLING], lease=LEASE))
    assert heir is not None
    assert (heir.crashes, heir.epoch) == (0, held.epoch + 2)
