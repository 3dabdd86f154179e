"""What the rows say of how batches in progress will go on, on SQLite and on PostgreSQL."""

from collections.abc import Sequence

import pytest
from sqlalchemy import Row, select, update

from batchmill.schedule.forecast import UNKNOWN
from batchmill.spec.objects import Usage
from batchmill.spec.states import Status
from batchmill.store.batch import pass_over, set_waiting
from batchmill.store.database import Database, Transaction
from batchmill.store.forecast import with_forecasts
from batchmill.store.tables import batch
from batchmill.store.tally import record_progress
from store.rows import NOW, a_batch, add_batch, add_organisations, add_running, get_batch

TOKENS = Usage(input_tokens=300, output_tokens=100, cached_tokens=7, reasoning_tokens=9)


@pytest.fixture(autouse=True)
async def _organisations(database: Database) -> None:
    await database.write(add_organisations)
    await database.write(lambda tx: add_running(tx, lines=1000))


def pass_time(tx: Transaction, seconds: float) -> None:
    """Let the last commit have been so long ago, on either clock."""
    known = update(batch).where(batch.c.counted_at.is_not(None))
    tx.connection.execute(known.values(counted_at=batch.c.counted_at - seconds))


def commit(tx: Transaction, *, after: float, lines: int = 50) -> None:
    """Count a group commit, so many seconds after the last; one of its lines failed."""
    pass_time(tx, after)
    record_progress(tx, batch_id="batch_1", completed=lines - 1, failed=1, closed_slices=0, usage=TOKENS)


def sums(tx: Transaction) -> Row[tuple[float, float, float]]:
    """Return the faded sums of lines, tokens and seconds."""
    return tx.connection.execute(select(batch.c.recent_lines, batch.c.recent_tokens, batch.c.recent_seconds)).one()


def course(tx: Transaction) -> object:
    """Return the forecast of the batch."""
    (found,) = with_forecasts(tx, [get_batch(tx)], now=NOW)
    return found.object.progress


async def test_sums_fade_with_each_commit(database: Database) -> None:
    """New lines, tokens and seconds are added, and all that is there loses weight by the time that has passed."""

    def statements(tx: Transaction) -> list[Sequence[float]]:
        commit(tx, after=0)
        return [*(commit(tx, after=gap) or sums(tx) for gap in (100, 300))]

    after_one, after_two = await database.write(statements)
    assert after_one == pytest.approx((50 * 0.75, 400 * 0.75, 100 * 0.75), rel=1e-3)
    assert after_two == pytest.approx(((37.5 + 50) / 2, (300 + 400) / 2, (75 + 300) / 2), rel=1e-3)


async def test_the_first_lines_count_in_no_rate(database: Database) -> None:
    """Nobody knows how long they took; from the second commit on the rate is known."""

    def statements(tx: Transaction) -> tuple[Sequence[float], object, object]:
        commit(tx, after=0, lines=500)
        first, unknown = sums(tx), course(tx)
        commit(tx, after=25)
        return first, unknown, course(tx)

    first, unknown, known = await database.write(statements)
    assert first == (0, 0, 0)
    assert unknown == UNKNOWN
    assert known.lines_per_second == pytest.approx(2.0, rel=1e-2)
    assert known.tokens_per_second == pytest.approx(16.0, rel=1e-2)
    assert known.eta == pytest.approx(NOW + (2000 - 550) / 2, abs=10)
    assert known.misses_by is None


async def test_a_batch_that_will_be_late_says_so(database: Database) -> None:
    """The deadline is the row's: one hour, and 1,900 lines at two a minute need more than fifteen."""

    def statements(tx: Transaction) -> object:
        commit(tx, after=0)
        commit(tx, after=1500)
        return course(tx)

    told = await database.write(statements)
    assert told.misses_by == told.eta - NOW - 3600
    assert told.misses_by == pytest.approx(1900 * 30 - 3600, rel=1e-2)


@pytest.mark.parametrize("again", ["wait", "restart"])
async def test_time_in_which_a_batch_could_not_run_counts_in_no_rate(database: Database, again: str) -> None:
    """After an outage or a stop the old rate stands, from the first lines on; until then nothing is told."""

    def statements(tx: Transaction) -> list[object]:
        commit(tx, after=0)
        commit(tx, after=25)
        before = sums(tx)
        told = []
        if again == "wait":
            set_waiting(tx, batch_id="batch_1", waiting="no backend is well", now=NOW)
            told.append(course(tx))
            commit(tx, after=3600)  # the first lines are there before anybody has said that it goes on
            told.append(course(tx))
            set_waiting(tx, batch_id="batch_1", waiting=None, now=NOW)
        else:
            pass_over(tx)
        told.append(course(tx))
        commit(tx, after=3600)
        return [*told, sums(tx) == before, course(tx)]

    *told, unchanged, at_last = await database.write(statements)
    assert told == [UNKNOWN] * len(told)
    assert unchanged
    assert at_last.lines_per_second == pytest.approx(2.0, rel=1e-2)


async def test_a_lease_clock_that_began_anew_is_no_gap(database: Database) -> None:
    """After the machine's restart the last commit lies in the future: its gap is unknown, and the next one is not."""

    def statements(tx: Transaction) -> list[object]:
        commit(tx, after=0)
        commit(tx, after=25)
        before = sums(tx)
        pass_time(tx, -1e6)
        unknown = course(tx)
        commit(tx, after=0)
        return [unknown, sums(tx) == before, course(tx)]

    unknown, unchanged, known = await database.write(statements)
    assert (unknown, unchanged) == (UNKNOWN, True)
    assert known.lines_per_second == pytest.approx(2.0, rel=1e-2)


async def test_only_batches_in_progress_have_a_forecast(database: Database) -> None:
    """The others come back as they are, and each is in its place."""

    def statements(tx: Transaction) -> list[tuple[str, bool]]:
        add_batch(tx, a_batch("batch_2"))
        add_batch(tx, a_batch("batch_3"), status=Status.COMPLETED)
        batches = [get_batch(tx, name) for name in ("batch_3", "batch_1", "batch_2")]
        return [(found.id, found.object.progress is None) for found in with_forecasts(tx, batches, now=NOW)]

    expected = [("batch_3", True), ("batch_1", False), ("batch_2", True)]
    assert await database.write(statements) == expected
