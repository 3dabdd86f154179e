"""The rows of a batch that is steered: each change expects a status, and says at once what its owner reads."""

from dataclasses import replace

import pytest
from sqlalchemy import select

from batchmill.schedule.forecast import UNKNOWN, Forecast
from batchmill.spec.objects import Usage
from batchmill.spec.states import Event, Status
from batchmill.spec.steer import paused
from batchmill.store.batch import TRIES, Batch, advance, claim_batch, put_off, set_waiting
from batchmill.store.database import Database, Transaction
from batchmill.store.forecast import with_forecasts
from batchmill.store.slice import claim_slices, list_candidates
from batchmill.store.standing import list_standings
from batchmill.store.steer import Course, courses_of, pause, resume, set_priority, set_window
from batchmill.store.tables import batch
from batchmill.store.tally import record_progress
from store.rows import LEASE, NOW, THEIRS, a_batch, add_batch, add_organisations, add_running, get_batch

SAID = paused(NOW + 3600)


@pytest.fixture(autouse=True)
async def _organisations(database: Database) -> None:
    await database.write(add_organisations)


def steered(tx: Transaction) -> Batch:
    """Return batch_1 as it is."""
    return get_batch(tx)


async def test_a_pause_is_said_with_it(database: Database) -> None:
    """The flag and the reason are one write; a second pause finds that someone was faster, as a second resume does."""

    def statements(tx: Transaction) -> tuple[list[bool], Batch, Batch]:
        add_running(tx)
        found = steered(tx)
        paused_once = [pause(tx, found, now=NOW + 5), pause(tx, found, now=NOW + 6)]
        then = steered(tx)
        resumed = [resume(tx, then), resume(tx, then)]
        return paused_once + resumed, then, steered(tx)

    changed, then, at_last = await database.write(statements)
    assert changed == [True, False, True, False]
    assert (then.object.paused_at, then.waiting, then.waiting_since) == (NOW + 5, SAID, NOW + 5)
    assert (at_last.object.paused_at, at_last.waiting, at_last.waiting_since) == (None, None, None)


async def test_no_slice_of_a_paused_batch_is_claimed(database: Database) -> None:
    """Neither is it a candidate, nor does a claim that was decided on before get any."""

    def statements(tx: Transaction) -> tuple[object, object, int]:
        add_running(tx)
        pause(tx, steered(tx), now=NOW)
        claim = {"batch_id": "batch_1", "count": 9, "models": ["m"], "worker_id": "w", "lease": LEASE}
        none = list_candidates(tx, models=["m"], worker_id="w", limit=9), claim_slices(tx, **claim)  # type: ignore[arg-type] - as it takes
        resume(tx, steered(tx))
        return *none, len(claim_slices(tx, **claim))  # type: ignore[arg-type] - the same

    assert await database.write(statements) == ([], [], 2)


async def test_paused_batches_take_no_places_of_those_that_are_told_why_they_wait(database: Database) -> None:
    """What they say is known: an organisation that pauses many hides no other's reason."""

    def statements(tx: Transaction) -> list[list[str]]:
        add_running(tx)
        add_batch(tx, a_batch("batch_2", organisation_id=THEIRS))
        pause(tx, steered(tx), now=NOW)
        told = [[standing.batch_id for standing in list_standings(tx, limit=1)]]
        resume(tx, steered(tx))
        return [*told, [standing.batch_id for standing in list_standings(tx, limit=1)]]

    assert await database.write(statements) == [["batch_2"], ["batch_1"]]


async def test_a_pause_goes_on_when_a_batch_is_accepted_and_ends_with_it(database: Database) -> None:
    """In progress it is still paused and says so; once nothing is left to send there is no pause any more."""

    def statements(tx: Transaction) -> list[tuple[int | None, str | None]]:
        add_batch(tx)
        pause(tx, steered(tx), now=NOW)
        found = []
        for status, event in ((Status.VALIDATING, Event.ACCEPTED), (Status.IN_PROGRESS, Event.CANCEL)):
            assert advance(tx, batch_id="batch_1", status=status, event=event, now=NOW + 1)
            found.append((steered(tx).object.paused_at, steered(tx).waiting))
        return found

    assert await database.write(statements) == [(NOW, SAID), (None, None)]


async def test_what_is_said_of_a_stuck_batch_stays(database: Database) -> None:
    """A pause does not hide that validating fails, and a resume does not silence it."""

    def statements(tx: Transaction) -> list[str | None]:
        add_batch(tx)
        for _ in range(TRIES):
            claimed = claim_batch(tx, worker_id="w", statuses=[Status.VALIDATING], lease=LEASE)
            assert claimed is not None
            put_off(tx, batch_id="batch_1", epoch=claimed.epoch, crashed=True, seconds=-1)
        set_waiting(tx, batch_id="batch_1", waiting="stuck: it failed", now=NOW)
        said = []
        for change in (lambda found: pause(tx, found, now=NOW), lambda found: resume(tx, found)):
            assert change(steered(tx))
            said.append(steered(tx).waiting)
        return said

    assert await database.write(statements) == ["stuck: it failed"] * 2


async def test_a_window_moves_as_a_whole(database: Database) -> None:
    """Text and end change together; a Sweeper that is late misses it."""

    def statements(tx: Transaction) -> tuple[Batch, list[bool]]:
        add_running(tx)
        assert set_window(tx, steered(tx), window="2h", expires_at=NOW + 7200)
        moved = [
            advance(tx, batch_id="batch_1", status=Status.IN_PROGRESS, event=Event.WINDOW_PASSED, now=now)
            for now in (NOW + 3600, NOW + 7200)
        ]
        return steered(tx), moved

    found, moved = await database.write(statements)
    assert (found.object.completion_window, found.object.expires_at) == ("2h", NOW + 7200)
    assert moved == [False, True]


async def test_a_pause_says_the_end_of_the_window_that_stands(database: Database) -> None:
    """Whoever pauses has read the window that it names, and a new one renames it."""

    def statements(tx: Transaction) -> tuple[bool, str | None]:
        add_running(tx)
        before = steered(tx)
        assert set_window(tx, before, window="2h", expires_at=NOW + 7200)
        late = pause(tx, before, now=NOW)
        pause(tx, steered(tx), now=NOW)
        set_window(tx, steered(tx), window="3h", expires_at=NOW + 10_800)
        return late, steered(tx).waiting

    assert await database.write(statements) == (False, paused(NOW + 10_800))


async def test_what_moved_meanwhile_is_not_steered(database: Database) -> None:
    """Each change expects the status that its caller has read."""

    def statements(tx: Transaction) -> list[bool]:
        add_running(tx)
        before = steered(tx)
        assert advance(tx, batch_id="batch_1", status=Status.IN_PROGRESS, event=Event.CANCEL, now=NOW)
        return [
            pause(tx, before, now=NOW),
            resume(tx, before),
            set_window(tx, before, window="2h", expires_at=NOW + 7200),
            set_priority(tx, before, priority=1),
        ]

    assert await database.write(statements) == [False] * 4


async def test_a_pause_counts_in_no_rate(database: Database) -> None:
    """Neither the time of it nor what still came in then; the forecast of a paused batch says nothing."""

    def statements(tx: Transaction) -> tuple[list[float], Forecast | None]:
        add_running(tx, slices=9)

        def count(seconds: float) -> float:
            later = batch.update().values(counted_at=batch.c.counted_at - seconds)
            tx.connection.execute(later)
            record_progress(tx, batch_id="batch_1", completed=1, failed=0, closed_slices=0, usage=Usage())
            return float(tx.connection.execute(select(batch.c.recent_seconds)).scalar_one())

        seconds = [count(0), count(20)]
        pause(tx, steered(tx), now=NOW)
        seconds += [count(500), count(500)]
        told = with_forecasts(tx, [steered(tx)], now=NOW)[0].object.progress
        resume(tx, steered(tx))
        return [*seconds, count(500), count(20)], told

    seconds, told = await database.write(statements)
    first, one, *paused_, after, two = (round(each) for each in seconds)
    assert (first, one, paused_, after) == (0, 19, [19, 19], 19)
    assert 30 < two < 40
    assert told == UNKNOWN


async def test_each_course_is_told(database: Database) -> None:
    """Whoever holds Slices reads all that can change of their batches at once."""

    def statements(tx: Transaction) -> object:
        add_running(tx)
        add_running(tx, "batch_2", organisation_id=THEIRS)
        set_priority(tx, steered(tx), priority=-3)
        pause(tx, get_batch(tx, "batch_2", organisation_id=THEIRS), now=NOW)
        return courses_of(tx, batch_ids=["batch_1", "batch_2", "batch_3"])

    plain = Course(status=Status.IN_PROGRESS, paused=False, expires_at=NOW + 3600, priority=-3)
    assert await database.write(statements) == {"batch_1": plain, "batch_2": replace(plain, paused=True, priority=0)}


async def test_no_organisation_crowds_out_another(database: Database) -> None:
    """Of more candidates than are looked at each organisation has its first: by priority, then by deadline."""

    def statements(tx: Transaction) -> list[str]:
        for n in range(5):
            add_running(tx, f"batch_{n}")
            set_priority(tx, get_batch(tx, f"batch_{n}"), priority=100 * (n > 1))
        add_running(tx, "batch_9", organisation_id=THEIRS)
        return [found.batch_id for found in list_candidates(tx, models=["m"], worker_id="w", limit=3)]

    assert await database.write(statements) == ["batch_2", "batch_9", "batch_3"]
