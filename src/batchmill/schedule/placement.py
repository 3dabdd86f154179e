"""Which Backend gets which line: those with a common beginning go to one, and nobody is idle while lines are left.

Lines lie in the Plan's order, groups with a common beginning side by side. A Backend takes a whole group from the
front and keeps it until it is sent; then it takes the next. So each takes contiguous pieces, as fast as it is, and its
cache computes a beginning once. When the front is empty an idle one steals from the far end of the largest group that
another still holds: half of it, so that a beginning is computed again only where there is work for it.

Towards the end nobody may hoard: each has at most its share of what is not answered, by the lines it has answered so
far. Else one that was sent a thousand lines ends long after those that have run dry.
"""

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")

KNOWN = 64  # answers of each Backend on average: before that nobody knows how fast it is


class Placement(Generic[Item]):
    """The lines that no Backend has been sent yet, for Backends numbered from 0."""

    def __init__(self, *, backends: int) -> None:
        self._front: deque[tuple[int, deque[Item]]] = deque()
        self._held: list[tuple[int, deque[Item]]] = [(0, deque()) for _ in range(backends)]
        self._left = 0
        self._out = [0] * backends
        self._answered = [0] * backends

    def __len__(self) -> int:
        """Return how many lines are left."""
        return self._left

    def add(self, item: Item, prefix: int) -> None:
        """Take in the next line of the Plan; lines in a row with the same prefix, not 0, are a group."""
        self._left += 1
        groups = [self._front[-1]] if self._front else [held for held in self._held if held[0] == prefix != 0]
        if groups and groups[0][0] == prefix:
            groups[0][1].append(item)
        else:
            self._front.append((prefix, deque([item])))

    def put_back(self, item: Item) -> None:
        """Take a line back that goes before all others, to whoever has room: it has waited, and so does its Slice."""
        self._left += 1
        self._front.appendleft((0, deque([item])))

    def take(self, backend: int) -> Item | None:
        """Return the next line for a Backend; None when none is left, or none that it should have now.

        One that has nothing in flight always gets a line while some are left. Tell `ended` of each that was taken.
        """
        if not self._left or self._hoards(backend):
            return None
        if not self._held[backend][1]:
            self._held[backend] = self._next_group()
        self._left -= 1
        self._out[backend] += 1
        return self._held[backend][1].popleft()

    def ended(self, backend: int) -> None:
        """Note that a line that a Backend took is out no more."""
        self._out[backend] -= 1
        self._answered[backend] += 1

    def _hoards(self, backend: int) -> bool:
        # One with nothing in flight is away, or asks for itself.
        beside = [answered for answered, out in zip(self._answered, self._out, strict=True) if out]
        answered = sum(beside)
        if not self._out[backend] or answered < KNOWN * len(beside):
            return False
        share = self._answered[backend] / answered
        return self._out[backend] >= share * (self._left + sum(self._out))

    def _next_group(self) -> tuple[int, deque[Item]]:
        if not self._front:
            return self._steal()
        prefix, items = self._front[0]
        if prefix:
            return self._front.popleft()
        item = items.popleft()  # lines that share nothing go to whoever has room
        if not items:
            self._front.popleft()
        return 0, deque([item])

    def _steal(self) -> tuple[int, deque[Item]]:
        prefix, items = max(self._held, key=lambda held: len(held[1]))
        stolen = deque(items.pop() for _ in range((len(items) + 1) // 2))
        stolen.reverse()
        return prefix, stolen
