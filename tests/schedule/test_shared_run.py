"""Several workers find one engine's window together, in virtual time: as good as one, and never more than the total."""

from functools import cache
from itertools import pairwise

import engine_model as model
import makespan
import pytest
from policy_run import Change
from shared_run import BEAT, LEASE, Hand, SharedRun
from suites import suite

from batchmill.schedule.pace import Pace

SLOTS = [4, 16, 64, 256]


def hands(count: int, *, window: int | None = None, **more: float) -> list[Hand]:
    """Return workers; `window` is the total where it is set."""
    sought = {"most": makespan.MOST} if window is None else {"window": window}
    return [Hand(pace=Pace(alone=count == 1, **sought), **more) for _ in range(count)]


def ran(workers: list[Hand], *, slots: int = 64, lines: int | None = None, **more: object) -> SharedRun:
    """Run a suite of even lines until all are answered."""
    made = suite("D", lines=lines or makespan.SLOTS[slots], seed=1)
    run = SharedRun(lines=made, hands=workers, engine=model.Engine(makespan.sized(slots)), **more).run()
    assert len(run.answers) == len(made)
    return run


@cache
def by_one(*, gauges: bool) -> float:
    """Return how long one worker takes that has nobody beside it."""
    return ran(hands(1), shows_gauges=gauges).makespan


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("gauges", [True, False])
@pytest.mark.parametrize("slots", SLOTS)
def test_several_workers_find_what_one_finds(slots: int, gauges: bool, workers: int) -> None:
    """Cold start included, their throughput together is at least 0.95 of one worker's on the same engine."""
    assert makespan.found_by(workers, slots, gauges=gauges, seed=1) >= 0.95


@pytest.mark.parametrize("gauges", [True, False])
def test_one_that_could_have_others_beside_it_is_as_one_that_never_asks(gauges: bool) -> None:
    """A worker that is alone judges at once, though it tells and hears every second."""
    asks = Hand(pace=Pace(most=makespan.MOST, alone=False))
    assert ran([asks], shows_gauges=gauges).makespan == pytest.approx(by_one(gauges=gauges), rel=0.01)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_window_that_is_set_is_never_exceeded(workers: int) -> None:
    """At every moment that somebody tells, in flight is at most the total and one for each worker."""
    run = ran(hands(workers, window=48))
    assert {seen.total for seen in run.seen} == {48}
    assert max(seen.in_flight - seen.workers for seen in run.seen) <= 48
    assert max(seen.in_flight for seen in run.seen) >= 48


@pytest.mark.parametrize("gauges", [True, False])
def test_a_window_that_is_found_is_exceeded_only_by_what_was_out(gauges: bool) -> None:
    """When the total becomes smaller, what is out ends in its time; nothing is sent above it once all have heard."""
    run = ran(hands(4), shows_gauges=gauges)
    over = [seen for seen in run.seen if seen.in_flight > seen.total + seen.workers]
    assert over
    for before, after in pairwise(run.seen):
        falls = [seen.at for seen in run.seen if seen.at <= after.at and seen.total > after.total]
        if after.in_flight > after.total + after.workers and (not falls or after.at > falls[-1] + 2 * BEAT):
            assert after.in_flight <= before.in_flight


def windows_at(run: SharedRun, moment: float) -> list[int]:
    """Return what each worker might have in flight then."""
    return next(seen.parts for seen in run.seen if seen.at >= moment)


def test_a_worker_that_comes_gets_its_part() -> None:
    """The one that had all of the window gives half of it up, as its requests are answered; nothing is exceeded."""
    workers = hands(2, window=64)
    workers[1].comes = 20.0
    run = ran(workers)
    assert windows_at(run, 15.0) == [64]
    assert windows_at(run, 25.0) == [32, 32]
    assert max(seen.in_flight - seen.workers for seen in run.seen) <= 64


@pytest.mark.parametrize("first", [True, False])
def test_a_worker_that_goes_leaves_its_part(first: bool) -> None:
    """In good order within two beats, the one that led or the other; the window stays about what it was."""
    workers = hands(3)
    workers[0 if first else 2].goes = 40.0
    run = ran(workers)
    before = [seen.total for seen in run.seen if 30 < seen.at < 40]
    after = [seen.total for seen in run.seen if 50 < seen.at < 60]
    assert 0.6 < (sum(after) / len(after)) / (sum(before) / len(before)) < 1.7
    assert len(windows_at(run, 55.0)) == 2
    assert sum(windows_at(run, 55.0)) >= 0.8 * after[0]
    assert by_one(gauges=False) / run.makespan >= 0.93


@pytest.mark.parametrize("first", [True, False])
def test_a_worker_that_dies_is_absorbed(first: bool) -> None:
    """Its part is held for a lease, since nobody knows what of it still runs; then the others have all of it."""
    workers = hands(3, window=60)
    workers[0 if first else 2].goes, workers[0 if first else 2].dies = 20.0, True
    run = ran(workers)
    assert windows_at(run, 20.0 + LEASE / 2) == [20, 20]
    assert sum(windows_at(run, 20.0 + LEASE + 2 * BEAT)) == 60
    assert {seen.total for seen in run.seen} == {60}


def test_a_worker_without_lines_holds_nothing_beyond_one() -> None:
    """Whoever has lines gets the window; when the other has some again, it gets its half of it."""
    workers = hands(2, window=64)
    workers[1].has_lines = lambda now: now < 10 or now > 30
    run = ran(workers)
    assert windows_at(run, 20.0) == [64, 1]
    assert windows_at(run, 40.0) == [32, 32]


def test_pressure_is_shared() -> None:
    """An engine that refuses above so many in flight gets about so many from all workers together."""
    run = ran(hands(4), refuses_above=40)
    late = [seen.in_flight for seen in run.seen if seen.at > run.makespan / 3 and seen.at < 0.9 * run.makespan]
    assert 20 <= sum(late) / len(late) <= 42
    assert run.refused < len(run.answers) / 10


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_change_of_the_engine_is_followed_by_all(factor: float) -> None:
    """Four workers follow it as well as one does."""
    profile = makespan.sized(64)
    changes = [Change(at=60.0, profile=makespan.times(profile, factor))]
    one, four = (ran(hands(count), changes=changes).makespan for count in (1, 4))
    assert one / four >= 0.95
