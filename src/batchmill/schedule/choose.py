"""Which batches a worker claims Slices from: organisations share by weight; within one, by priority, then by deadline.

A batch of higher priority has all its Slices claimed before any of a lower one, whatever their deadlines: the priority
is what its owner says, the risk is what we estimate. One that waits so may miss its deadline, as its forecast says.

Among those of one priority: while the organisation's share of the rate will do for all their deadlines, they take
turns, so that a small one is not stuck behind a large one. Where it will not do, those up to the last deadline at risk
go one after the other, nearest deadline first: at overload that gets the most lines done in time (earliest deadline
first). What comes before them by priority counts as work that is to be done first.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, repeat

_RISK = 0.9  # of the time left: an estimate that needs more is taken for a deadline at risk


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A batch with Slices to claim. Times are Unix seconds; tokens are estimates."""

    batch_id: str
    organisation: str
    open_slices: int
    expires_at: float
    created_at: float
    slice_tokens: float = 1.0  # of a Slice, on average
    weight: float = 1.0  # of its organisation
    priority: int = 0  # higher goes first, within the organisation

    @property
    def tokens(self) -> float:
        """What is left of it."""
        return self.open_slices * self.slice_tokens


class Chooser:
    """Chooses for one worker, and remembers what each organisation has had.

    Organisations get tokens in proportion to their weights (start-time fair queueing, Goyal et al. 1996): the next
    Slice is for the one that has had least by its weight. Who had nothing to claim for a while saves nothing up.
    """

    def __init__(self) -> None:
        self._had: dict[str, float] = {}  # tokens by weight
        self._level = 0.0  # what the last one served had had: nobody begins below

    def choose(
        self, candidates: Iterable[Candidate], slices: int, *, now: float, rate: float | None
    ) -> tuple[str, ...]:
        """Return at most `slices` batch ids, to claim one Slice from each time an id appears.

        An id appears at most `open_slices` times.

        Args:
            candidates: The batches that there are.
            slices: How many Slices to claim.
            now: Unix seconds.
            rate: Tokens a second that are got done, of all organisations; None while nobody knows.
        """
        ordered = sorted((c for c in candidates if c.open_slices > 0), key=lambda c: (c.organisation, _rank(c)))
        groups = {name: list(group) for name, group in groupby(ordered, key=lambda c: c.organisation)}
        weights = sum(group[0].weight for group in groups.values())
        shares = {
            name: _in_turn(group, now=now, rate=rate and rate * group[0].weight / weights)
            for name, group in groups.items()
        }
        return tuple(islice(self._served(groups, shares), slices))

    def _served(
        self, groups: Mapping[str, Sequence[Candidate]], shares: Mapping[str, Iterator[Candidate]]
    ) -> Iterator[str]:
        had = {name: max(self._had.get(name, 0.0), self._level) for name in groups}
        self._had = had
        waiting = sorted(groups, key=lambda name: min(map(_urgency, groups[name])))
        while waiting:
            name = min(waiting, key=had.__getitem__)  # of equals the most urgent
            taken = next(shares[name], None)
            if taken is None:
                waiting.remove(name)
                continue
            self._level = had[name]
            had[name] += taken.slice_tokens / taken.weight
            yield taken.batch_id


def _urgency(candidate: Candidate) -> tuple[float, float, str]:
    return candidate.expires_at, candidate.created_at, candidate.batch_id


def _rank(candidate: Candidate) -> tuple[int, tuple[float, float, str]]:
    return -candidate.priority, _urgency(candidate)


def _in_turn(group: Sequence[Candidate], *, now: float, rate: float | None) -> Iterator[Candidate]:
    """Yield the batches of one organisation by priority, once for each Slice."""
    before = 0.0
    for _, level in groupby(group, key=lambda c: c.priority):
        equals = list(level)
        yield from _by_deadline(equals, before=before, now=now, rate=rate)
        before += sum(candidate.tokens for candidate in equals)


def _by_deadline(group: Sequence[Candidate], *, before: float, now: float, rate: float | None) -> Iterator[Candidate]:
    """Yield batches of one priority, in the order of their deadlines; `before` are the tokens that come before them."""
    at_risk = _at_risk(group, before=before, now=now, rate=rate)
    for candidate in group[:at_risk]:
        yield from repeat(candidate, candidate.open_slices)
    queues = deque(repeat(candidate, candidate.open_slices) for candidate in group[at_risk:])
    while queues:
        queue = queues.popleft()
        for candidate in islice(queue, 1):
            yield candidate
            queues.append(queue)


def _at_risk(group: Sequence[Candidate], *, before: float, now: float, rate: float | None) -> int:
    """Return how many batches, from the nearest deadline on, go before all others: up to the last that is at risk."""
    at_risk, tokens = 0, before
    for place, candidate in enumerate(group, 1):
        tokens += candidate.tokens
        if rate and tokens / rate > _RISK * (candidate.expires_at - now):
            at_risk = place
    return at_risk
