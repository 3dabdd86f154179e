"""Which Backend gets which line: those with a common beginning go to one, and nobody is idle while lines are left.

Lines lie in the Plan's order, groups with a common beginning side by side. A Backend takes a whole group from the
front and keeps it until it is sent; then it takes the next. So each takes contiguous pieces, as fast as it is, and its
cache computes a beginning once. When the front is empty an idle one steals from the far end of the largest group that
another still holds: half of it, so that a beginning is computed again only where there is work for it.
"""

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Placement(Generic[Item]):
    """The lines that no Backend has been sent yet, for Backends numbered from 0."""

    def __init__(self, *, backends: int) -> None:
        self._front: deque[tuple[int, deque[Item]]] = deque()
        self._held: list[tuple[int, deque[Item]]] = [(0, deque()) for _ in range(backends)]

    def __len__(self) -> int:
        """Return how many lines are left."""
        return sum(len(items) for _, items in (*self._front, *self._held))

    def add(self, item: Item, prefix: int) -> None:
        """Take in the next line of the Plan; lines in a row with the same prefix, not 0, are a group."""
        last = (
            self._front[-1] if self._front else next((held for held in self._held if held[0] == prefix), (0, deque()))
        )
        if last[0] == prefix and (prefix or self._front):
            last[1].append(item)
        else:
            self._front.append((prefix, deque([item])))

    def take(self, backend: int) -> Item | None:
        """Return the next line for a Backend; None when none is left."""
        if not self._held[backend][1]:
            self._held[backend] = self._next_group()
        items = self._held[backend][1]
        return items.popleft() if items else None

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
