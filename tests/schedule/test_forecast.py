"""How a batch will go on."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.schedule.forecast import FADE_SECONDS, UNKNOWN, Forecast, Outlook, Recent, forecast, outlook

NOW = 1_800_000_000.0
DEADLINE = int(NOW) + 86_400
GOING = Recent(lines=200.0, tokens=50_000.0, seconds=100.0, age=1.0)  # two lines a second
gaps = st.floats(min_value=1e-3, max_value=1e6)
counts = st.integers(min_value=1, max_value=100_000)


def course(
    recent: Recent, *, left: int = 1000, waits: bool = False, now: float = NOW, deadline: int | None = DEADLINE
) -> Forecast:
    """Return the forecast of a batch in the usual circumstances."""
    return forecast(recent, left=left, waits=waits, now=now, expires_at=deadline)


def counted(recent: Recent, *, lines: float, gap: float) -> Recent:
    """Count one more group commit, as the store's statement does."""
    fade = FADE_SECONDS / (FADE_SECONDS + gap)
    return replace(recent, lines=(recent.lines + lines) * fade, seconds=(recent.seconds + gap) * fade)


def rate_of(recent: Recent) -> float:
    """Return lines a second."""
    return recent.lines / recent.seconds


def test_a_batch_that_goes_well_is_foretold() -> None:
    """The rates are those of late, and the rest takes as long at them; it is done in time, so it misses by nothing."""
    told = course(GOING, left=1000, now=NOW + 0.25)
    assert told == Forecast(lines_per_second=2.0, tokens_per_second=500.0, eta=int(NOW) + 501, misses_by=None)


def test_a_batch_that_will_be_late_says_by_how_much() -> None:
    """The miss is what lies between deadline and end; an end on the deadline itself is in time."""
    assert course(GOING, left=1000, deadline=int(NOW) + 400).misses_by == 100
    assert course(GOING, left=1000, deadline=int(NOW) + 500).misses_by is None
    assert course(GOING, left=1000, deadline=None).misses_by is None


def test_replies_that_count_no_tokens_give_no_rate_of_them() -> None:
    """Nobody knows the tokens of a backend that does not tell them; the lines are known all the same."""
    told = course(replace(GOING, tokens=0.0))
    assert (told.tokens_per_second, told.lines_per_second) == (None, 2.0)


def test_tokens_divide_as_they_did_of_late() -> None:
    """Prompt and completion are parts of the rate of both, even where one of them is nothing."""
    told = course(replace(GOING, prompt=3_000.0, completion=1_000.0))  # counted for a part of the time
    assert (told.prompt_tokens_per_second, told.completion_tokens_per_second) == (375.0, 125.0)
    told = course(replace(GOING, prompt=50_000.0))
    assert (told.prompt_tokens_per_second, told.completion_tokens_per_second) == (500.0, 0.0)
    assert course(GOING).prompt_tokens_per_second is None


@pytest.mark.parametrize(
    ("recent", "waits"),
    [
        (GOING, True),
        (replace(GOING, age=None), False),
        (replace(GOING, age=301.0), False),
        (replace(GOING, seconds=0.0), False),
        (replace(GOING, seconds=9.9), False),
        (replace(GOING, lines=9.9), False),
        (replace(GOING, lines=9.9, seconds=149.0), False),
        (replace(GOING, lines=0.0, seconds=300.0), False),
        (replace(GOING, lines=0.003, seconds=300.0), False),
    ],
    ids=[
        "waits",
        "since-a-restart",
        "stands-still",
        "new",
        "too-short",
        "too-few",
        "slow-or-not",
        "no-lines",
        "line-a-day",
    ],
)
def test_what_nobody_can_know_is_not_told(recent: Recent, *, waits: bool) -> None:
    """A batch that waits, stands still, has just begun or hardly moves has no rate, no end and no miss."""
    assert course(recent, waits=waits, deadline=int(NOW) - 1) == UNKNOWN


@pytest.mark.parametrize(
    "recent",
    [
        replace(GOING, age=300.0),
        replace(GOING, lines=10.0, seconds=10.0),
        replace(GOING, lines=0.5, seconds=150.0),
        replace(GOING, lines=1.0, seconds=290.0, age=2900.0),
    ],
    ids=["quiet-for-a-while", "just-known", "slow", "slow-and-quiet"],
)
def test_what_is_known_is_told(recent: Recent) -> None:
    """Enough lines will do, or enough seconds; and a slow batch is not taken for one that stands still."""
    assert course(recent).eta is not None


@given(rate=st.floats(min_value=0.01, max_value=1e5), spans=st.lists(gaps, min_size=1, max_size=50))
def test_a_steady_batch_has_its_own_rate_whenever_its_commits_come(rate: float, spans: list[float]) -> None:
    """The first commits say the same as the thousandth, whatever the gaps between them."""
    recent = Recent(lines=0.0, tokens=0.0, seconds=0.0, age=0.0)
    for gap in spans:
        recent = counted(recent, lines=rate * gap, gap=gap)
        assert rate_of(recent) == pytest.approx(rate)
        assert recent.seconds <= FADE_SECONDS * (1 + 1e-9)


@given(commits=st.lists(st.tuples(counts, gaps), min_size=2, max_size=50))
def test_one_commit_moves_the_rate_by_no_more_than_it_weighs(commits: list[tuple[int, float]]) -> None:
    """The rate stays between what it was and what the new lines alone say, nearer to what is longer: no jumps."""
    seen = [Recent(lines=0.0, tokens=0.0, seconds=0.0, age=0.0)]
    for lines, gap in commits:
        seen.append(counted(seen[-1], lines=lines, gap=gap))
    for (before, after), (lines, gap) in zip(list(pairwise(seen))[1:], commits[1:], strict=True):
        weight = gap / (before.seconds + gap)
        assert rate_of(after) == pytest.approx((1 - weight) * rate_of(before) + weight * lines / gap)


def test_a_rate_follows_a_backend_that_has_become_slower() -> None:
    """Ten minutes after the pace has halved it is known to within a fifth."""
    recent = GOING
    for _ in range(3600):
        recent = counted(recent, lines=2.0, gap=1.0)
    for _ in range(600):
        recent = counted(recent, lines=1.0, gap=1.0)
    assert rate_of(recent) == pytest.approx(1.0, rel=0.2)


@given(
    recent=st.builds(
        Recent,
        lines=st.floats(min_value=0, max_value=1e12),
        tokens=st.floats(min_value=0, max_value=1e15),
        seconds=st.floats(min_value=0, max_value=FADE_SECONDS),
        age=st.none() | st.floats(min_value=0, max_value=1e9),
    ),
    left=st.integers(min_value=0, max_value=10**9),
    waits=st.booleans(),
    deadline=st.none() | st.integers(min_value=0, max_value=2**40),
)
def test_all_is_told_or_nothing(recent: Recent, left: int, *, waits: bool, deadline: int | None) -> None:
    """Rate and end are known together, the end is not in the past, and more lines left never end sooner."""
    told = course(recent, left=left, waits=waits, deadline=deadline)
    if told.eta is None:
        assert told == UNKNOWN
        return
    assert not waits
    assert told.lines_per_second is not None
    assert told.eta >= NOW
    more = course(recent, left=left + 1, waits=waits, deadline=deadline).eta
    assert more is not None
    assert more >= told.eta
    late = 0 if deadline is None else told.eta - deadline
    assert told.misses_by == (late if late > 0 else None)


def look(
    *running: Recent,
    last: Recent | None = None,
    ahead: float = 0.0,
    tokens: float | None = 1000.0,
    deadline: int = DEADLINE,
) -> Outlook:
    """Return the outlook for a batch that is not there yet."""
    return outlook(running, last=last, ahead=ahead, tokens=tokens, now=NOW, expires_at=deadline)


def test_a_new_batch_is_done_after_all_that_is_there() -> None:
    """Batches go side by side at the sum of their rates; what is left of them and its own tokens take so long."""
    told = look(GOING, GOING, ahead=9_000.0)
    assert told == Outlook(tokens_per_second=1000.0, eta=int(NOW) + 10, margin=86_390)


def test_a_new_batch_that_would_be_late_says_by_how_much() -> None:
    """The margin is below nothing then."""
    assert look(GOING, ahead=0, tokens=1_000_000, deadline=int(NOW) + 1_500).margin == -500


def test_where_nothing_runs_the_last_rate_counts() -> None:
    """It is what the same models did when they last had work; while some run, theirs is the one."""
    assert look(last=GOING).tokens_per_second == 500.0
    assert look(replace(GOING, tokens=1_000.0), last=GOING).tokens_per_second == 10.0
    assert look(replace(GOING, age=None), last=GOING).tokens_per_second == 500.0


@pytest.mark.parametrize("last", [None, replace(GOING, seconds=1.0), replace(GOING, tokens=0.0)])
def test_nobody_knows_without_a_rate(last: Recent | None) -> None:
    """What was too short, or told of no tokens, says nothing."""
    assert look(last=last) == Outlook()


def test_what_would_never_run_has_no_end() -> None:
    """The rate is told all the same."""
    assert look(GOING, tokens=None) == Outlook(tokens_per_second=500.0)
