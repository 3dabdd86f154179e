"""A worker's lease as the worker itself judges it: who could not renew sends nothing, whatever the rows still say."""

from batchmill.clock import Clock


class Lease:
    """The lease on all that one worker holds, by its own boot clock; the fence in the rows has the last word.

    A process that was stopped or starved wakes up with a lease that has lapsed: it must not send a single line before
    it has noticed (reliability, 4.5).

    Args:
        clock: Tells the time.
        seconds: How long the lease lasts from each renewal on.
    """

    def __init__(self, *, clock: Clock, seconds: float) -> None:
        self.seconds = seconds
        self._clock = clock
        self._renewed_at = clock.boot()

    def renewed(self, at: float) -> None:
        """Note that it was renewed by a write that began at `at` (boot clock): the rows cannot count from earlier."""
        self._renewed_at = at

    @property
    def holds(self) -> bool:
        """Whether it has not lapsed: lines may be sent."""
        return self.left > 0

    @property
    def left(self) -> float:
        """How many seconds of it are left."""
        return self._renewed_at + self.seconds - self._clock.boot()

    @property
    def is_fresh(self) -> bool:
        """Whether more than a third of it is left: more work may be claimed."""
        return self.left > self.seconds / 3
