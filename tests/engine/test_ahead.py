"""How much a worker claims ahead."""

import pytest

from batchmill.engine.ahead import Ahead
from batchmill.schedule.plan import SLICE_LINES


def running(rate: int) -> Ahead:
    """Return what a worker knows after a minute at so many lines a second."""
    ahead = Ahead(now=0.0)
    for second in range(1, 61):
        for _ in range(rate):
            ahead.line_ended(tokens=50)
        ahead.measure(float(second))
    return ahead


def test_a_worker_that_begins_claims_one_slice() -> None:
    """Without a rate it wants a window's worth of lines, and at least a Slice while it has less."""
    ahead = Ahead(now=0.0)
    assert ahead.slices(pending=0, window=8, lines=SLICE_LINES) == 1
    assert ahead.slices(pending=7, window=8, lines=SLICE_LINES) == 1
    assert ahead.slices(pending=8, window=8, lines=SLICE_LINES) == 0


def test_a_fast_worker_claims_twenty_seconds_of_work() -> None:
    """It fills up to twenty seconds at its own rate, once less than ten are in hand."""
    ahead, rate = running(100), 100
    assert ahead.slices(pending=10 * rate, window=8, lines=SLICE_LINES) == 0
    assert ahead.slices(pending=9 * rate, window=8, lines=SLICE_LINES) == round(11 * rate / SLICE_LINES)


def test_no_claim_is_without_bound() -> None:
    """However fast it is, it takes sixteen Slices at once: others want some, too."""
    assert running(10_000).slices(pending=0, window=8, lines=SLICE_LINES) == 16


def test_what_a_very_fast_worker_has_in_hand_is_bounded() -> None:
    """Twenty seconds of ten thousand lines a second would be its memory; a window that is larger still is filled."""
    ahead = running(10_000)
    assert ahead.slices(pending=16_384, window=8, lines=SLICE_LINES) == 0
    assert ahead.slices(pending=16_383, window=8, lines=SLICE_LINES) == 16
    assert ahead.slices(pending=16_384, window=16_385, lines=SLICE_LINES) == 16


def test_the_rate_follows_what_ends() -> None:
    """After an idle minute a worker claims as one that begins."""
    ahead = running(1000)
    for second in range(61, 121):
        ahead.measure(float(second))
    assert ahead.slices(pending=8, window=8, lines=SLICE_LINES) == 0


def test_the_rate_is_told_in_tokens() -> None:
    """By the estimates of the lines that ended; nobody knows it before one has."""
    assert Ahead(now=0.0).token_rate is None
    assert running(100).token_rate == pytest.approx(5000)


def test_short_slices_are_claimed_by_their_lines() -> None:
    """Where a file changes its model from line to line, many Slices are claimed at once, but not any number."""
    ahead = Ahead(now=0.0)
    assert ahead.slices(pending=0, window=8, lines=2) == 8
    assert ahead.slices(pending=0, window=512, lines=1) == 64
