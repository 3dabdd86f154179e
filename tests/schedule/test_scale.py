import pytest

from batchmill.schedule.scale import Left, Lull, Scale, Wanted, wanted_workers

_SCALE = Scale(least=1, most=8, lines=100, patience=60.0)


def _left(lines: int, batches: int | None = None) -> Left:
    return Left(lines=lines, batches=min(lines, 1) if batches is None else batches)


@pytest.mark.parametrize(
    ("left", "running", "workers"),
    [
        (_left(0), 1, 1),
        (_left(1), 1, 1),
        (_left(100), 1, 1),
        (_left(101), 1, 2),
        (_left(750), 3, 8),
        (_left(10**9), 8, 8),
        (_left(0), 0, 1),
    ],
)
def test_the_backlog_wants_a_worker_for_so_many_lines(left: Left, running: int, workers: int) -> None:
    """One for each hundred open lines or part of it, at once, and never fewer or more than the bounds say."""
    assert wanted_workers(_SCALE, left=left, running=running, lull=None, now=0.0) == Wanted(workers=workers)


@pytest.mark.parametrize(("batches", "workers"), [(0, 0), (1, 1), (500, 1)])
def test_a_batch_without_open_lines_wants_one_worker(batches: int, workers: int) -> None:
    """A fleet that may be empty has one worker as long as a batch waits to be validated, closed or expired."""
    scale = Scale(least=0, most=8, lines=100, patience=60.0)
    assert wanted_workers(scale, left=_left(0, batches), running=0, lull=None, now=0.0).workers == workers


def test_fewer_are_wanted_after_the_patience_only() -> None:
    """A backlog that falls lets nobody go for a minute, and then all but those that it needed at its highest."""
    lull, workers = None, 6
    for now, lines in ((0.0, 100), (30.0, 320), (59.9, 0)):
        wanted = wanted_workers(_SCALE, left=_left(lines), running=workers, lull=lull, now=now)
        lull, workers = wanted.lull, wanted.workers
        assert workers == 6
    assert lull == Lull(since=0.0, peak=4)
    assert wanted_workers(_SCALE, left=_left(0), running=6, lull=lull, now=60.0) == Wanted(workers=4)


def test_a_backlog_that_comes_back_ends_the_lull() -> None:
    """What needs all workers again begins the patience anew."""
    lull = Lull(since=0.0, peak=2)
    assert wanted_workers(_SCALE, left=_left(600), running=6, lull=lull, now=59.0) == Wanted(workers=6)


def test_who_dies_in_a_lull_is_not_replaced_beyond_the_need() -> None:
    """When fewer are running than the lull's peak, its end does not bring them back."""
    assert wanted_workers(_SCALE, left=_left(0), running=2, lull=Lull(since=0.0, peak=4), now=60.0).workers == 2


@pytest.mark.parametrize(("running", "workers"), [(0, 1), (5, 5), (12, 8)])
def test_a_store_that_is_away_changes_nothing(running: int, workers: int) -> None:
    """Where nobody knows the backlog only the bounds count, and the lull goes on."""
    lull = Lull(since=0.0, peak=2)
    wanted = wanted_workers(_SCALE, left=None, running=running, lull=lull, now=100.0)
    assert wanted == Wanted(workers=workers, lull=lull)


def test_new_bounds_count_at_once() -> None:
    """More workers than the most there may be are let go without patience; no workers at all are allowed."""
    none = Scale(least=0, most=0, lines=100, patience=60.0)
    assert wanted_workers(none, left=_left(10**6), running=5, lull=None, now=0.0).workers == 0
    assert wanted_workers(_SCALE, left=_left(10**6), running=12, lull=None, now=0.0).workers == 8


@pytest.mark.parametrize(
    ("least", "most", "lines", "says"),
    [(2, 1, 1, "from 2 to 1 workers"), (-1, 1, 1, "from -1 to 1"), (0, 1, 0, "0 lines for each worker")],
)
def test_numbers_that_make_no_sense_are_refused(least: int, most: int, lines: int, says: str) -> None:
    """Bounds the wrong way round and workers without lines are refused with a sentence."""
    with pytest.raises(ValueError, match=says):
        Scale(least=least, most=most, lines=lines, patience=60.0)
