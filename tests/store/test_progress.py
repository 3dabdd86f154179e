"""What became of a batch's lines, as rows, on SQLite and on PostgreSQL."""

import pytest
from sqlalchemy import insert, select, update

from batchmill.spec.groups import ErrorGroup
from batchmill.spec.models import NOTHING_CONFIGURED
from batchmill.spec.objects import Usage
from batchmill.spec.progress import GROUPS_KEPT, Errors, ProgressObject, Share
from batchmill.spec.states import Status
from batchmill.store.batch import claim_batch, set_waiting
from batchmill.store.database import Database, SqliteDatabase, Transaction
from batchmill.store.progress import add_errors, add_shares, find_progress
from batchmill.store.slice import claim_slices
from batchmill.store.tables import batch
from batchmill.store.tally import record_progress
from store.rows import LEASE, MINE, NOW, THEIRS, a_batch, add_batch, add_organisations, add_running
from store.test_slice import plan_of


@pytest.fixture(autouse=True)
async def _organisations(database: Database) -> None:
    await database.write(add_organisations)


def told(tx: Transaction, batch_id: str = "batch_1", organisation_id: str = MINE) -> ProgressObject:
    """Return how far a batch is."""
    found = look(tx, batch_id, organisation_id)
    assert found is not None
    return found


def look(tx: Transaction, batch_id: str, organisation_id: str) -> ProgressObject | None:
    """Look at a batch as an organisation does."""
    return find_progress(
        tx, organisation_id=organisation_id, batch_id=batch_id, catalogue=NOTHING_CONFIGURED, now=float(NOW)
    )


def failed(name: str, *custom_ids: str) -> Errors:
    """Return a group with these lines."""
    group = ErrorGroup(name, 400, "c", "m")
    return Errors(group=group, count=len(custom_ids), custom_ids=custom_ids[:5], example=f"one of {len(custom_ids)}")


def count(tx: Transaction, *errors: Errors, most: int = GROUPS_KEPT) -> None:
    """Count failed lines."""
    add_errors(tx, batch_id="batch_1", organisation_id=MINE, errors=errors, most=most)


async def test_shares_add_up(database: Database) -> None:
    """Each backend has its own, by name; of two batches neither has the other's."""

    def statements(tx: Transaction) -> list[list[Share]]:
        for name in ("batch_1", "batch_2"):
            add_running(tx, name)
        add_shares(tx, [])
        one = Share(backend="b", lines=3, prompt_tokens=30, completion_tokens=3)
        two = Share(backend="a", lines=1, prompt_tokens=1 << 40, completion_tokens=1)
        add_shares(tx, [("batch_1", MINE, one), ("batch_2", MINE, two)])
        add_shares(tx, [("batch_1", MINE, one), ("batch_1", MINE, two)])
        return [list(told(tx, name).shares) for name in ("batch_1", "batch_2")]

    first, second = await database.write(statements)
    assert first == [
        Share(backend="a", lines=1, prompt_tokens=1 << 40, completion_tokens=1),
        Share(backend="b", lines=6, prompt_tokens=60, completion_tokens=6),
    ]
    assert [share.backend for share in second] == ["a"]


async def test_groups_add_up_and_keep_their_first_lines(database: Database) -> None:
    """The first five custom_ids stay, whatever is in them."""

    def statements(tx: Transaction) -> ProgressObject:
        add_running(tx)
        count(tx)
        count(tx, failed("g", "\0", "雨", "a"), failed("h", "z"))
        count(tx, failed("g", *(f"r-{n}" for n in range(7))))
        return told(tx)

    errors = {each.group.id: each for each in (await database.write(statements)).errors}
    assert (errors["g"].count, errors["g"].custom_ids) == (10, ("\0", "雨", "a", "r-0", "r-1"))
    assert (errors["g"].group, errors["g"].example) == (ErrorGroup("g", 400, "c", "m"), "one of 3")
    assert (errors["h"].count, errors["h"].custom_ids) == (1, ("z",))


async def test_a_batch_keeps_so_many_groups(database: Database) -> None:
    """Lines of any other are counted as failed and are in no group; those of a group that is kept still are."""

    def statements(tx: Transaction) -> ProgressObject:
        add_running(tx, slices=2, lines=64)
        count(tx, *(failed(f"g{n}", "a") for n in range(60)))
        count(tx, *(failed(f"h{n}", "a") for n in range(10)), failed("g0", "b"))
        count(tx, failed("h9", "c"))
        record_progress(tx, batch_id="batch_1", completed=0, failed=72, closed_slices=0, usage=Usage())
        return told(tx)

    found = await database.write(statements)
    assert len(found.errors) == GROUPS_KEPT
    assert {"g0", "h3"} <= {each.group.id for each in found.errors}
    assert "h4" not in {each.group.id for each in found.errors}
    assert found.wire()["errors_ungrouped"] == 7
    await database.write(lambda tx: count(tx, failed("last", "a"), most=GROUPS_KEPT + 1))
    assert len((await database.read(told)).errors) == GROUPS_KEPT + 1


async def test_another_organisations_batch_is_not_there(database: Database) -> None:
    """Not even its id."""
    await database.write(add_running)
    assert await database.read(lambda tx: look(tx, "batch_1", THEIRS)) is None
    assert await database.read(lambda tx: look(tx, "batch_9", MINE)) is None


async def test_the_place_in_the_queue_is_that_in_which_batches_are_taken(database: Database) -> None:
    """By deadline in progress, by age before and behind it; a batch in hand is worked on; a final one is in none."""

    def statements(tx: Transaction) -> dict[str, int | None]:
        for name, status, window in (
            ("batch_1", Status.VALIDATING, 50),
            ("batch_2", Status.VALIDATING, 40),
            ("batch_3", Status.IN_PROGRESS, 3600),
            ("batch_4", Status.IN_PROGRESS, 1800),
            ("batch_5", Status.IN_PROGRESS, 900),
            ("batch_6", Status.COMPLETED, 900),
            ("batch_7", Status.FINALIZING, 900),
        ):
            add_batch(tx, a_batch(name, expires_at=NOW + window), status=status)
        tx.connection.execute(update(batch).where(batch.c.id == "batch_3").values(priority=7))
        return {name: told(tx, name).ahead for name in (f"batch_{n}" for n in range(1, 8))}

    places = await database.write(statements)
    assert places == {
        "batch_1": 0,
        "batch_2": 1,
        "batch_3": 0,
        "batch_4": 2,
        "batch_5": 1,
        "batch_6": None,
        "batch_7": 0,
    }


async def test_a_batch_in_hand_is_worked_on(database: Database) -> None:
    """Somebody holds it, or a Slice of it: none comes before, though the queue would have it so."""

    def statements(tx: Transaction) -> list[int | None]:
        add_running(tx, "batch_1")
        add_running(tx, "batch_2")
        add_batch(tx, a_batch("batch_3"))
        add_batch(tx, a_batch("batch_4"))
        before = [told(tx, name).ahead for name in ("batch_2", "batch_4")]
        claim_slices(tx, batch_id="batch_2", count=1, models=["m"], worker_id="w", lease=LEASE)
        for _ in range(2):
            claim_batch(tx, worker_id="w", statuses=[Status.VALIDATING], lease=LEASE)
        return [*before, *(told(tx, name).ahead for name in ("batch_2", "batch_4"))]

    assert await database.write(statements) == [1, 1, 0, 0]


async def test_a_place_is_counted_among_those_with_the_nearest_deadlines(database: Database) -> None:
    """At most a thousand: who follows a batch asks every second, and a queue may have any length."""

    def statements(tx: Transaction) -> list[int | None]:
        add_running(tx, "batch_last")
        [row] = tx.connection.execute(select(batch)).mappings()
        others = [{"id": f"batch_{n:04}", "input_key": None, "expires_at": NOW + n % 7} for n in range(1204)]
        tx.connection.execute(insert(batch), [dict(row) | other for other in others])
        return [told(tx, name).ahead for name in ("batch_0007", "batch_0008", "batch_last")]

    assert await database.write(statements) == [1, 172 + 1, 1000]


async def test_how_far_a_batch_is_is_found_by_indexes(database: Database) -> None:
    """On SQLite neither all batches of a status are read or sorted, nor all Slices of the batch."""
    if not isinstance(database, SqliteDatabase):  # PostgreSQL chooses by statistics
        return
    await database.write(add_running)
    plan = await database.write(lambda tx: plan_of(tx, told))
    assert not any(step.startswith("SCAN") or "TEMP B-TREE" in step for step in plan), plan
    assert "SEARCH batch USING INDEX ix_batch_status (status=?)" in plan, plan
    assert "SEARCH slice USING INDEX ix_slice_owner (owner>?)" in plan, plan


async def test_why_a_batch_waits_is_told(database: Database) -> None:
    """With the time from when on."""

    def statements(tx: Transaction) -> list[tuple[str, int] | None]:
        add_running(tx)
        before = told(tx).waiting
        set_waiting(tx, batch_id="batch_1", waiting="the disk is full", now=NOW + 5)
        return [before, told(tx).waiting]

    assert await database.write(statements) == [None, ("the disk is full", NOW + 5)]


async def test_retries_and_tokens_by_kind_are_counted(database: Database) -> None:
    """Retries add up; of the tokens lately, so much was prompt and so much was not."""

    def statements(tx: Transaction) -> ProgressObject:
        add_running(tx, lines=1000)
        usage = Usage(input_tokens=300, output_tokens=100)
        for _ in range(2):
            ago = update(batch).where(batch.c.counted_at.is_not(None))
            tx.connection.execute(ago.values(counted_at=batch.c.counted_at - 50))
            record_progress(tx, batch_id="batch_1", completed=50, failed=0, closed_slices=0, usage=usage, retries=3)
        return told(tx)

    found = await database.write(statements)
    course = found.batch.progress
    assert found.retries == 6
    assert course is not None
    assert course.prompt_tokens_per_second == pytest.approx(6.0, rel=0.05)
    assert course.completion_tokens_per_second == pytest.approx(2.0, rel=0.05)
