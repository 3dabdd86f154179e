"""Which batches come before which, of those in one status."""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from batchmill.spec.states import Status


class Queued(Protocol):
    """A batch in a queue."""

    @property
    def batch_id(self) -> str:
        """Its id; ids sort by creation."""

    @property
    def organisation_id(self) -> str:
        """Whose it is."""

    @property
    def expires_at(self) -> int:
        """Its deadline in Unix seconds."""

    @property
    def priority(self) -> int:
        """Higher goes first, within the organisation."""


Q = TypeVar("Q", bound=Queued)


def in_line(status: Status, queued: Iterable[Q]) -> list[Q]:
    """Return these batches, all in this status, in the order in which they are taken."""
    if status is Status.IN_PROGRESS:
        return _by_priority(sorted(queued, key=lambda each: (each.expires_at, each.batch_id)))
    return sorted(queued, key=lambda each: each.batch_id)


def _by_priority(line: Sequence[Q]) -> list[Q]:
    """Return these batches so that each organisation's stand by priority, in the places that are its own."""
    ranked: dict[str, deque[Q]] = defaultdict(deque)
    for each in sorted(line, key=lambda each: -each.priority):
        ranked[each.organisation_id].append(each)
    return [ranked[each.organisation_id].popleft() for each in line]
