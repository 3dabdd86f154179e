"""How much a worker claims ahead: about twenty seconds of work at its own rate, so that it never runs dry.

A rate of tens of thousands of lines a second would fill its memory so: beyond a bound, a second or two has to do.
"""

from batchmill.schedule.plan import SLICE_LINES

_SECONDS = 20.0
_LINES_AHEAD = 128 * SLICE_LINES  # some 450 bytes each beside its text (bench/memory.py)
_LINES_AT_ONCE = 16 * SLICE_LINES
_SLICES_AT_ONCE = 64  # each is two statements in one transaction


class Ahead:
    """The smoothed rate at which lines end, and what follows from it. Times are seconds of the boot clock."""

    def __init__(self, *, now: float) -> None:
        self._rate = 0.0  # lines a second
        self._token_rate = 0.0
        self._ended = self._tokens = 0
        self._measured_at = now

    @property
    def token_rate(self) -> float | None:
        """Tokens a second, by the estimates of the lines that ended; None while none has."""
        return self._token_rate or None

    def line_ended(self, tokens: int) -> None:
        """Count a line of so many tokens, by estimate."""
        self._ended += 1
        self._tokens += tokens

    def measure(self, now: float) -> None:
        """Take what has ended since the last measuring into the rate."""
        elapsed = max(now - self._measured_at, 1e-3)
        self._rate = 0.5 * self._rate + 0.5 * self._ended / elapsed
        self._token_rate = 0.5 * self._token_rate + 0.5 * self._tokens / elapsed
        self._ended, self._tokens, self._measured_at = 0, 0, now

    def slices(self, *, pending: int, window: int, lines: float) -> int:
        """Return how many Slices of so many lines to claim beside `pending` lines in hand; 0 while those will do."""
        ahead = min(self._rate * _SECONDS, _LINES_AHEAD)
        if pending >= max(window, ahead / 2):
            return 0
        wanted = min(max(2 * window, ahead) - pending, _LINES_AT_ONCE)
        return max(1, min(_SLICES_AT_ONCE, round(wanted / lines)))
