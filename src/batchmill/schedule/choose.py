"""Which batches a worker claims Slices from: organisations take turns, and within one the nearest deadline leads."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice, repeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A batch with Slices to claim. Times are Unix seconds."""

    batch_id: str
    organisation: str
    open_slices: int
    expires_at: float
    created_at: float


def choose(candidates: Iterable[Candidate], slices: int, turn: int = 0) -> tuple[str, ...]:
    """Return at most `slices` batch ids, to claim one Slice from each time an id appears.

    Organisations take turns, whatever they have queued; within one its batches take turns, nearest deadline first.
    An id appears at most `open_slices` times. The organisation with the nearest deadline begins; `turn` moves the
    beginning on, so that a caller who counts its calls is fair even with fewer slices than organisations.
    """
    shares = _shares(candidates)
    start = turn % len(shares) if shares else 0
    return tuple(islice(_take_turns(shares[start:] + shares[:start]), slices))


def _shares(candidates: Iterable[Candidate]) -> list[Iterator[str]]:
    """Return the queue of each organisation, the most urgent organisation first."""

    def urgency(candidate: Candidate) -> tuple[float, float, str]:
        return candidate.expires_at, candidate.created_at, candidate.batch_id

    ordered = sorted((c for c in candidates if c.open_slices > 0), key=lambda c: (c.organisation, urgency(c)))
    groups = [list(group) for _, group in groupby(ordered, key=lambda c: c.organisation)]
    groups.sort(key=lambda group: urgency(group[0]))
    return [_take_turns([repeat(c.batch_id, c.open_slices) for c in group]) for group in groups]


def _take_turns(queues: Iterable[Iterator[str]]) -> Iterator[str]:
    waiting = deque(queues)
    while waiting:
        queue = waiting.popleft()
        for item in islice(queue, 1):
            yield item
            waiting.append(queue)
