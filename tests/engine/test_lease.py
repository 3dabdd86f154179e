"""A worker's lease as the worker itself judges it."""

from batchmill.engine.lease import Lease
from fakeclock import FakeClock


def test_a_lease_counts_from_where_its_renewal_began() -> None:
    """The rows cannot count from earlier, so a renewal that took long leaves less of it."""
    clock = FakeClock(boot=100.0)
    lease = Lease(clock=clock, seconds=15.0)
    clock.uptime = 110.0
    lease.renewed(104.0)
    assert lease.left == 9.0


def test_work_is_claimed_on_a_fresh_lease_only() -> None:
    """More is claimed while over a third of it is left, lines are sent to its end and not at it."""
    clock = FakeClock(boot=100.0)
    lease = Lease(clock=clock, seconds=15.0)
    seen = []
    for clock.uptime in (109.9, 110.0, 114.9, 115.0):
        seen.append((lease.is_fresh, lease.holds))
    assert seen == [(True, True), (False, True), (False, True), (False, False)]


def test_wall_time_means_nothing_to_a_lease() -> None:
    """A clock that is set does not end it."""
    clock = FakeClock()
    lease = Lease(clock=clock, seconds=15.0)
    clock.time += 1_000_000
    assert lease.left == 15.0
