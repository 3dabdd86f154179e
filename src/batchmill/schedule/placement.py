"""Which Backend gets which line: those with a common beginning go to one, and nobody is idle while lines are left.

Lines lie in the Plan's order, groups with a common beginning side by side. A Backend takes a whole group from the
front and keeps it until it is sent; then it takes the next. So each takes contiguous pieces, as fast as it is, and its
cache computes a beginning once. When the front is empty an idle one steals from the far end of the largest group that
another still holds: half of it, so that a beginning is computed again only where there is work for it.

An engine whose slots each have a cache of their own would compute a beginning in each of them. It is given lines of as
many groups side by side as it has slots, each time of the group that has the fewest out.

Towards the end nobody may hoard: each has at most its share of what is not answered, by the lines it has answered so
far. Else one that was sent a thousand lines ends long after those that have run dry. Who has nothing in flight, or has
not answered for long, takes part in no share.
"""

from collections import defaultdict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

LATE = 4  # times what it has in flight should have been answered: it hangs
KNOWN = 64  # answers of each Backend on average: before that nobody knows how fast it is


@dataclass(slots=True)
class _Group(Generic[Item]):
    prefix: int
    items: deque[Item]
    out: int = 0


class Placement(Generic[Item]):
    """The lines that no Backend has been sent yet. Backends come as they take, named by anything; they may leave."""

    def __init__(self) -> None:
        self._front: deque[_Group[Item]] = deque()
        self._held: defaultdict[Hashable, list[_Group[Item]]] = defaultdict(list)
        self._left = 0
        self._out: defaultdict[Hashable, int] = defaultdict(int)
        self._answered: defaultdict[Hashable, int] = defaultdict(int)
        # Answers that should have come since its last one, by what the others gave.
        self._owed: defaultdict[Hashable, float] = defaultdict(float)

    def __len__(self) -> int:
        """Return how many lines are left."""
        return self._left

    def add(self, item: Item, prefix: int) -> None:
        """Take in the next line of the Plan; lines in a row with the same prefix, not 0, are a group."""
        self._left += 1
        groups = [self._front[-1]] if self._front else [group for held in self._held.values() for group in held]
        for group in groups:
            if group.prefix == prefix and (prefix or self._front):
                group.items.append(item)
                return
        self._front.append(_Group(prefix, deque([item])))

    def put_back(self, item: Item) -> None:
        """Take a line back that goes before all others, to whoever has room: it has waited, and so does its Slice."""
        self._left += 1
        self._front.appendleft(_Group(0, deque([item])))

    def take(self, backend: Hashable, *, side_by_side: int = 1, is_end: bool = True) -> Item | None:
        """Return the next line for a Backend; None when none is left, or none that it should have now.

        One that has nothing in flight always gets a line while some are left. Tell `ended` of each that was taken.

        Args:
            backend: What stands for it.
            side_by_side: Of how many groups it gets lines in turns.
            is_end: What is left here is all that there is.
        """
        if not self._left or (is_end and self._hoards(backend)):
            return None
        self._left -= 1
        self._out[backend] += 1
        held = self._held[backend]
        if held:
            held[:] = [group for group in held if group.items]
        if not held and self._front and not self._front[0].prefix:
            return self._single()
        if not held or (len(held) < side_by_side and self._front):
            held.append(self._next_group())
        group = held[0] if len(held) == 1 else min(held, key=_out)
        group.out += 1
        return group.items.popleft()

    def ended(self, backend: Hashable, prefix: int = 0, *, answered: bool = True) -> None:
        """Note that a line that a Backend took is out no more, and whether it was answered."""
        self._out[backend] -= 1
        if answered:
            self._answered[backend] += 1
            for other, so_far in self._answered.items():
                self._owed[other] += so_far / self._answered[backend]
            self._owed[backend] = 0.0
        for group in self._held[backend]:
            if group.prefix == prefix != 0 and group.out:
                group.out -= 1
                break

    def leave(self, backend: Hashable) -> None:
        """Give what a Backend holds to the others: it takes no more. What it has out ends as ever."""
        self._front.extendleft(reversed([group for group in self._held.pop(backend, ()) if group.items]))

    def _hoards(self, backend: Hashable) -> bool:
        if not self._out[backend] or len(self._out) == 1:
            return False
        beside = [self._answered[other] for other, out in self._out.items() if out and self._owed[other] <= LATE * out]
        answered = sum(beside)
        if answered < KNOWN * len(beside):
            return False
        share = self._answered[backend] / (answered or 1)
        return self._out[backend] >= share * (self._left + sum(self._out.values()))

    def _single(self) -> Item:
        """Return the first line in front, which shares nothing: such lines go to whoever has room."""
        item = self._front[0].items.popleft()
        if not self._front[0].items:
            self._front.popleft()
        return item

    def _next_group(self) -> _Group[Item]:
        if not self._front:
            return self._steal()
        if self._front[0].prefix:
            return self._front.popleft()
        return _Group(0, deque([self._single()]))

    def _steal(self) -> _Group[Item]:
        robbed = max((group for held in self._held.values() for group in held), key=lambda group: len(group.items))
        stolen = deque(robbed.items.pop() for _ in range((len(robbed.items) + 1) // 2))
        stolen.reverse()
        return _Group(robbed.prefix, stolen)


def _out(group: _Group[Item]) -> int:
    return group.out
