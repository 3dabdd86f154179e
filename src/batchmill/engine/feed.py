"""The lines in a worker's hands: whose turn it is, and which lane gets which line."""

import heapq
from collections import deque
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import count

from batchmill.engine.work import Request, Work
from batchmill.schedule.placement import Placement
from batchmill.schedule.plan import SLICE_LINES


@dataclass(slots=True, kw_only=True)
class _Turn:
    """The Slices of one batch, and by model those of their lines that may be sent."""

    expires_at: float  # Unix seconds
    works: list[Work] = field(default_factory=list)
    placements: dict[str, Placement[Request]] = field(default_factory=dict)


class Feed:
    """Hands out lines, batch by batch in turns, line by line, to whatever stands for a lane."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}
        self._order: deque[str] = deque()
        self._later: list[tuple[float, int, Request]] = []
        self._number = count()
        self._has_news = False
        self._places: dict[Request, tuple[Placement[Request], Hashable]] = {}  # of lines that are out

    def __iter__(self) -> Iterator[Work]:
        """Yield every Slice in hand."""
        return (work for turn in list(self._turns.values()) for work in list(turn.works))

    def pending(self, models: Collection[str]) -> int:
        """Return how many lines for these models could be sent now."""
        return sum(work.pending for work in self if work.model in models)

    @property
    def slice_lines(self) -> float:
        """How many lines a Slice in hand has, on average: few where a file is small or has many models."""
        lines = [work.claim.slice.lines for work in self]
        return sum(lines) / len(lines) if lines else SLICE_LINES

    def is_loaded(self, model: str) -> bool:
        """Say whether a line for this model could be sent at once."""
        return any(work.is_loaded and work.pending for work in self if work.model == model)

    def suspect(self, *, models: Collection[str], wall: float) -> Work | None:
        """Return a loaded Slice whose next line is to go alone, if there is one (`models`, `wall` as in `next`)."""
        suspects = (work for work in self if work.suspect and work.model in models)
        ready = (work for work in suspects if work.pending and work.is_loaded)
        return next((work for work in ready if wall < work.expires_at), None)

    @property
    def batches(self) -> int:
        """Of how many batches there are Slices in hand."""
        return len(self._turns)

    def add(self, work: Work) -> None:
        """Take a claimed Slice in."""
        if work.batch_id not in self._turns:
            self._turns[work.batch_id] = _Turn(expires_at=work.expires_at)
            self._order.append(work.batch_id)
        self._turns[work.batch_id].works.append(work)
        work.is_held = True

    def offer(self, work: Work) -> None:
        """Let lanes take what may be sent of a Slice from now on: it was loaded, announced, or is suspect no more."""
        if not work.is_held:
            return
        turn = self._turns[work.batch_id]
        placement = turn.placements.get(work.model)
        if placement is None:
            placement = turn.placements[work.model] = Placement()
        offered = work.offer()
        self._has_news = self._has_news or bool(offered)
        for request in offered:
            if request.sends and not request.falls:
                placement.put_back(request)
            else:
                placement.add(request, request.record.prefix)

    def take_news(self) -> bool:
        """Say whether something was offered since this was asked last."""
        news, self._has_news = self._has_news, False
        return news

    def remove(self, work: Work) -> None:
        """Forget a Slice: it ended, was released or lost."""
        work.withdraw()
        work.is_held = False
        works = self._turns[work.batch_id].works
        works.remove(work)
        if not works:
            del self._turns[work.batch_id]
            self._order.remove(work.batch_id)
        self._later = [entry for entry in self._later if entry[2].work is not work]
        heapq.heapify(self._later)

    def wake(self, now: float) -> None:
        """Let the lines whose wait is over be sent again (boot clock)."""
        while self._later and self._later[0][0] <= now:
            waited = heapq.heappop(self._later)[2]
            if waited.work.closing_since is None:
                waited.work.put_back(waited)
                self.offer(waited.work)

    def next(
        self, lane: Hashable, *, models: Collection[str], wall: float, last: Collection[str] = (), side_by_side: int = 1
    ) -> Request | None:
        """Return a line for a lane that serves these models, or None: none is left, or none that it should have now.

        Nothing of a batch past its window (`wall`, Unix seconds). Tell `ended` once its call has. For the models in
        `last` nothing more is to be had than what is in hand; `side_by_side` as in `Placement`.
        """
        for _ in range(len(self._order)):
            turn = self._turns[self._order[0]]
            self._order.rotate(-1)
            if wall < turn.expires_at:
                for model, placement in turn.placements.items():
                    request = None
                    if model in models:
                        request = _take(placement, lane, side_by_side=side_by_side, is_end=model in last)
                    if request is not None:
                        self._places[request] = placement, lane
                        return request
        return None

    def leave(self, lane: Hashable) -> None:
        """Give what stands ready for a lane to the others: it takes no more."""
        self._has_news = True
        for turn in self._turns.values():
            for placement in turn.placements.values():
                placement.leave(lane)

    def ended(self, request: Request, *, answered: bool = False) -> None:
        """Note that a line's call is over, and whether it brought the line's Result."""
        place = self._places.pop(request, None)  # one that went alone has none
        if place is not None:
            placement, lane = place
            placement.ended(lane, request.record.prefix, answered=answered)

    def put_back(self, request: Request, *, at: float) -> None:
        """Take a line back, to be sent at `at` (boot clock) or later."""
        if request.work.closing_since is None:
            heapq.heappush(self._later, (at, next(self._number), request))

    def wakes_at(self) -> float | None:
        """Return when the next waiting line may be sent (boot clock)."""
        return self._later[0][0] if self._later else None


def _take(placement: Placement[Request], lane: Hashable, *, side_by_side: int, is_end: bool) -> Request | None:
    """Return the next line for a lane; what was withdrawn since it was offered goes."""
    while (request := placement.take(lane, side_by_side=side_by_side, is_end=is_end)) is not None:
        if request.is_offered:
            return request.work.take(request)
        placement.ended(lane, request.record.prefix, answered=False)
    return None
