"""How many prompt tokens a Backend gets a second."""

import pytest

from batchmill.schedule.bucket import BURST, FACTOR, FIRST_RATE, IDLE, LONGEST, Bucket


def spend(bucket: Bucket, tokens: int, begin: float, seconds: float) -> int:
    """Send prompts of so many tokens whenever one may go; return the tokens sent."""
    now, sent = begin, 0
    while now < begin + seconds:
        assert bucket.is_open(now)
        bucket.take(tokens, now)
        sent += tokens
        now = bucket.opens_at(now) + 1e-6
    return sent


def answer(bucket: Bucket, rate: int, begin: float, seconds: int) -> float:
    """Let prompts be answered at a rate, ten times a second; return when the last was."""
    now = begin
    for tenth in range(10 * seconds):
        now = begin + tenth / 10
        bucket.answered(rate // 10, now)
    return now


def test_a_start_is_paced() -> None:
    """Before anything is known a burst goes at once, and then so many tokens a second."""
    assert spend(Bucket(), 100, 50.0, 10.0) == pytest.approx(BURST + 10 * FIRST_RATE, rel=0.01)


def test_a_prompt_longer_than_the_burst_goes_and_is_paid_for() -> None:
    """However long a prompt is it may go; the next waits until its tokens have come in, as far as they count."""
    bucket = Bucket()
    wait = (LONGEST - BURST) / FIRST_RATE
    bucket.take(100 * LONGEST, 10.0)
    assert not bucket.is_open(10.0 + 0.9 * wait)
    assert bucket.opens_at(10.5) == pytest.approx(10.0 + wait)
    assert bucket.is_open(10.0 + 1.1 * wait)
    assert bucket.opens_at(12.1) == 12.1


def test_the_rate_follows_what_is_answered() -> None:
    """An engine that answers 30,000 prompt tokens a second gets FACTOR times that."""
    bucket = Bucket()
    bucket.take(0, 0.0)
    now = answer(bucket, 30_000, 0.0, 60)
    bucket.take(0, now)
    assert spend(bucket, 300, now, 4.0) == pytest.approx(4 * FACTOR * 30_000, rel=0.03)


def test_a_quick_engine_is_followed_quickly() -> None:
    """One that answers in milliseconds (embeddings) has a hundred times the first rate within two seconds."""
    bucket, now = Bucket(), 0.0
    while now < 2.0:
        while bucket.is_open(now):
            bucket.take(2500, now)
            bucket.answered(2500, now, took=0.002)
        now += 0.002
    assert spend(bucket, 2500, now, 1.0) > 100 * FIRST_RATE


def test_who_looks_seldom_loses_little() -> None:
    """A look every twentieth of a second lets all go that an engine of 500,000 tokens a second can take in between."""
    bucket, sent = Bucket(), 0
    for look in range(200):
        sent, now = 0, look / 20
        while sent < 100 and bucket.is_open(now):
            bucket.take(250, now)
            bucket.answered(250, now, took=0.002)
            sent += 1
    assert sent == 100


def test_prompts_that_cost_nothing_are_never_held_back() -> None:
    """Where no tokens are told, nothing is paced."""
    bucket = Bucket()
    for step in range(1000):
        assert bucket.is_open(step * 1e-6)
        bucket.take(0, step * 1e-6)


def test_after_a_pause_it_begins_gently() -> None:
    """What was answered before a pause is the rate after it, until answers come again."""
    bucket = Bucket()
    now = 0.0
    for second in range(30):
        bucket.take(0, float(second))
        now = answer(bucket, 30_000, float(second), 1)
    later = now + IDLE + 1
    assert spend(bucket, 300, later, 4.0) == pytest.approx(4 * 30_000 + BURST, rel=0.03)


def test_an_idle_time_is_no_slow_answer() -> None:
    """The first answer after a restart begins a new measure."""
    bucket = Bucket()
    bucket.take(0, 0.0)
    now = answer(bucket, 30_000, 0.0, 30)
    bucket.restart()
    bucket.answered(1, now + 1000)
    assert spend(bucket, 300, now + 1000, 4.0) > 3.5 * 30_000
