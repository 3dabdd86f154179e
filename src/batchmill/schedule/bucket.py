"""How many prompt tokens a Backend gets a second: so that our bursts do not stand before everybody else's prompts.

At the start, after a pause and after an outage a whole window would go at once, and an engine prefills it all before it
answers anybody who comes later. Requests that began together also end together, so without pacing the burst comes back
again and again. The bucket lets prompts go at FACTOR times the rate at which they were answered: it follows the engine,
and binds bursts only (`bench/makespan.py`: others' p99 of the first token is at most 4 times theirs alone).

Times are seconds of any one clock that does not step back; tokens are those that no prefix cache will have.
"""

from math import exp, inf

FIRST_RATE = 16384.0  # tokens a second before anything is known, and at least
BURST = 2048.0  # tokens that may go at once, or one prompt that is longer
LUMP = 0.1  # seconds of the rate that may go at once to an engine that answers within them: who sends looks seldom
FACTOR = 2.0  # times the rate of answered prompt tokens
LONGEST = 16384  # tokens that a prompt counts for at most: much longer ones are mostly images, and no such number
MEASURE = 1.0  # seconds to measure that rate over, or as long as a request takes where that is less
QUICKEST = 0.05  # seconds, the same at least
MEMORY = 2.0  # times as long a measured rate counts
IDLE = 5.0  # seconds without anything sent: then it is a start again


class Bucket:
    """The prompt tokens of one Backend. Not shared between threads."""

    def __init__(self) -> None:
        self._part = 1.0  # of what the Backend gets; the rest is other workers'
        self._rate = FIRST_RATE
        self._credit = BURST
        self._counted_at = -inf  # when the credit was last counted
        self._answered = 0  # tokens since the last measure
        self._answered_rate = 0.0  # tokens a second
        self._measured_at: float | None = None
        self._slowest = 0.0  # seconds of a request since the last measure
        self._is_quick = False

    def is_open(self, now: float) -> bool:
        """Say whether one more prompt may go, however long it is: those behind it wait for it."""
        return self._credit > 0 or self._credit_at(now) > 0  # with time it only grows

    def opens_at(self, now: float) -> float:
        """Return when the next prompt may go."""
        return now + max(0.0, -self._credit_at(now)) / self._rate

    def take(self, tokens: int, now: float) -> None:
        """Count a prompt that is sent."""
        if now - self._counted_at > IDLE:
            self.restart()
        self._credit = self._credit_at(now) - min(tokens, LONGEST)
        self._counted_at = now

    def answered(self, tokens: int, now: float, *, took: float = MEASURE) -> None:
        """Learn the rate from a prompt that was answered; `took` in seconds, from its send on."""
        if self._measured_at is None:
            self._measured_at, self._answered, self._slowest = now, 0, took
            return
        self._answered += min(tokens, LONGEST)
        self._slowest = max(self._slowest, took)
        elapsed = now - self._measured_at
        if elapsed >= QUICKEST and elapsed >= (period := min(max(self._slowest, QUICKEST), MEASURE)):
            self._is_quick = self._slowest < LUMP
            new = 1 - exp(-elapsed / (MEMORY * period))
            self._answered_rate += new * (self._answered / elapsed - self._answered_rate)
            self._turn_to(FACTOR * self._answered_rate, now)
            self._measured_at, self._answered, self._slowest = now, 0, 0.0

    def share(self, part: float) -> None:
        """Take this part of what is given without being asked, (0, 1]: all workers together begin as gently as one."""
        self._part = part

    def restart(self) -> None:
        """Begin gently: nothing is being prefilled, and what is known may be old."""
        self._rate = max(FIRST_RATE * self._part, self._answered_rate)
        self._measured_at = None

    def _turn_to(self, rate: float, now: float) -> None:
        self._credit, self._counted_at = self._credit_at(now), now
        self._rate = max(FIRST_RATE * self._part, rate)

    def _credit_at(self, now: float) -> float:
        burst = BURST * self._part
        if self._counted_at == -inf:
            return min(burst, self._credit)
        most = max(burst, LUMP * self._rate) if self._is_quick else burst
        return min(most, self._credit + (now - self._counted_at) * self._rate)
