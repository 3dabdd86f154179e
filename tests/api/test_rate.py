"""Token buckets, on a clock that the test moves."""

from batchmill.api.rate import Buckets
from fakeclock import FakeClock


def test_a_bucket_fills_up_evenly() -> None:
    """As many calls as fit, then one for each share of the minute; a long rest gives no more than the limit."""
    clock = FakeClock()
    buckets = Buckets(clock=clock)
    assert [buckets.take("a", per_minute=3).allowed for _ in range(4)] == [True, True, True, False]
    clock.uptime += 19
    refused = buckets.take("a", per_minute=3)
    assert (refused.allowed, refused.wait) == (False, 1)
    clock.uptime += 1
    assert buckets.take("a", per_minute=3).allowed
    clock.uptime += 10_000
    assert [buckets.take("a", per_minute=3).remaining for _ in range(3)] == [2, 1, 0]


def test_a_lower_limit_counts_at_once() -> None:
    """What a bucket held under a higher limit is cut to the new one."""
    buckets = Buckets(clock=FakeClock())
    buckets.take("a", per_minute=100)
    assert [buckets.take("a", per_minute=1).allowed for _ in range(2)] == [True, False]


def test_a_slow_rate_waits_for_a_minute_at_most() -> None:
    """One a minute: the next is a minute away, which is as far as Retry-After may point."""
    buckets = Buckets(clock=FakeClock())
    assert buckets.take("a", per_minute=1).reset == 60
    assert buckets.take("a", per_minute=1).wait == 60


def test_no_more_buckets_are_kept_than_allowed() -> None:
    """The one unused for longest is forgotten first; one in use is not."""
    buckets = Buckets(clock=FakeClock(), most=2)
    for name in ("a", "b", "a", "c"):
        buckets.take(name, per_minute=2)
    assert not buckets.take("a", per_minute=2).allowed  # still known
    assert buckets.take("b", per_minute=2).remaining == 1  # new again
