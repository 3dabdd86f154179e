"""When a group commit starts: the numbers of the data path (design, row 8)."""

from dataclasses import dataclass

_PAUSE_SECONDS = 1.0  # after a commit for which there was no space


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBounds:
    """The numbers of a group commit.

    It starts when `results` or `bytes` wait, when a Slice ended, or `wait` seconds after the first Result, but no
    sooner than `gap` seconds after the last one started. Sending pauses at `most_results` or `most_bytes` that are
    not durable yet.
    """

    results: int = 1024
    bytes: int = 4 << 20
    wait: float = 0.25
    gap: float = 0.05
    most_results: int = 4096
    most_bytes: int = 16 << 20


class Group:
    """Counts the Results that are not durable yet. Times are seconds of the boot clock."""

    def __init__(self, *, bounds: GroupBounds) -> None:
        self._bounds = bounds
        self._results = self._bytes = 0
        self._committing_results = self._committing_bytes = 0
        self._first: float | None = None
        self._slice_ended = False
        self._last_start = float("-inf")

    def add(self, *, size: int, slice_ended: bool, now: float) -> None:
        """Count one more Result of `size` bytes."""
        self._results += 1
        self._bytes += size
        self._slice_ended |= slice_ended
        if self._first is None:
            self._first = now

    def due(self) -> float | None:
        """Return when the group is to be committed, None while it is empty."""
        if self._first is None:
            return None
        bounds = self._bounds
        full = self._results >= bounds.results or self._bytes >= bounds.bytes or self._slice_ended
        return max(self._last_start + bounds.gap, self._first if full else self._first + bounds.wait)

    def start(self, now: float) -> None:
        """Begin the commit of all that is counted; what is added from now on belongs to the next group."""
        self._committing_results, self._committing_bytes = self._results, self._bytes
        self._results = self._bytes = 0
        self._first = None
        self._slice_ended = False
        self._last_start = now

    def stood(self) -> None:
        """End the commit: its Results are durable."""
        self._committing_results = self._committing_bytes = 0

    def failed(self, now: float) -> None:
        """End the commit: its Results wait still, and are tried again after a pause."""
        self._results += self._committing_results
        self._bytes += self._committing_bytes
        self._committing_results = self._committing_bytes = 0
        self._first = now
        self._last_start = now + _PAUSE_SECONDS

    @property
    def is_full(self) -> bool:
        """Whether sending must pause until a commit has ended: too much is not durable."""
        results = self._results + self._committing_results
        size = self._bytes + self._committing_bytes
        return results >= self._bounds.most_results or size >= self._bounds.most_bytes
