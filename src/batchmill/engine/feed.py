"""The lines in a worker's hands: whose turn it is, and which lane gets which line."""

import heapq
from collections import defaultdict, deque
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, groupby

from batchmill.engine.work import Request, Work
from batchmill.schedule.placement import Placement
from batchmill.schedule.plan import SLICE_LINES
from batchmill.store.steer import Course


@dataclass(slots=True, kw_only=True)
class _Turn:
    """The Slices of one batch, and by model those of their lines that may be sent.

    `above` are the turns of the same organisation that come before it: a level for each priority, the highest first.
    """

    organisation: str
    expires_at: float  # Unix seconds
    priority: int
    paused: bool = False
    above: Sequence[deque["_Turn"]] = ()
    works: list[Work] = field(default_factory=list)
    placements: dict[str, Placement[Request]] = field(default_factory=dict)


class Feed:
    """Hands out lines, batch by batch in turns, line by line, to whatever stands for a lane.

    A batch's turn is that of a batch of higher priority of its organisation, for as long as that one has a line: so
    organisations share the lanes as if there were no priorities. What is paused stays where it is, and has no turn.
    """

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}
        self._order: deque[str] = deque()
        self._is_ranked = True
        self._later: list[tuple[float, int, Request]] = []
        self._number = count()
        self._has_news = False
        self._places: dict[Request, tuple[Placement[Request], Hashable]] = {}  # of lines that are out

    def __iter__(self) -> Iterator[Work]:
        """Yield every Slice in hand."""
        return (work for turn in list(self._turns.values()) for work in list(turn.works))

    def by_priority(self) -> Iterator[Work]:
        """Yield every Slice that is not paused, none before those that come before it."""
        self._rank()
        turns = (each for turn in self._turns.values() for each in (*chain.from_iterable(turn.above), turn))
        first = {id(turn): turn for turn in turns if not turn.paused}
        return (work for turn in first.values() for work in list(turn.works))

    def pending(self, models: Collection[str]) -> int:
        """Return how many lines for these models could be sent now."""
        turns = (turn for turn in self._turns.values() if not turn.paused)
        return sum(work.pending for turn in turns for work in turn.works if work.model in models)

    @property
    def slice_lines(self) -> float:
        """How many lines a Slice in hand has, on average: few where a file is small or has many models."""
        lines = [work.claim.slice.lines for work in self]
        return sum(lines) / len(lines) if lines else SLICE_LINES

    def is_loaded(self, model: str) -> bool:
        """Say whether a line for this model could be sent at once."""
        mine = (work for work in self.by_priority() if work.model == model)
        return any(work.is_loaded and work.pending for work in mine)

    def suspect(self, *, models: Collection[str], wall: float) -> Work | None:
        """Return a loaded Slice whose next line is to go alone, if there is one (`models`, `wall` as in `next`)."""
        suspects = (work for work in self if work.suspect and work.model in models)
        ready = (work for work in suspects if work.pending and work.is_loaded)
        return next((work for work in ready if self.may_send(work, wall=wall)), None)

    def may_send(self, work: Work, *, wall: float) -> bool:
        """Say whether lines of a Slice may be sent: it is held, its batch is not paused and not past its window."""
        turn = self._turns[work.batch_id] if work.is_held else None
        return turn is not None and not turn.paused and wall < turn.expires_at

    def is_paused(self, work: Work) -> bool:
        """Say whether the batch of a Slice in hand is paused."""
        return self._turns[work.batch_id].paused

    def steer(self, batch_id: str, course: Course) -> None:
        """Take in how a batch in hand is to go on."""
        turn = self._turns[batch_id]
        self._has_news = self._has_news or (turn.paused and not course.paused)
        self._is_ranked = self._is_ranked and turn.priority == course.priority
        turn.expires_at, turn.priority, turn.paused = course.expires_at, course.priority, course.paused

    @property
    def batches(self) -> int:
        """Of how many batches there are Slices in hand."""
        return len(self._turns)

    def add(self, work: Work) -> None:
        """Take a claimed Slice in."""
        if work.batch_id not in self._turns:
            self._turns[work.batch_id] = _turn(work)
            self._order.append(work.batch_id)
            self._is_ranked = False
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
            self._is_ranked = False
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
        self._rank()
        for _ in range(len(self._order)):
            turn = self._turns[self._order[0]]
            self._order.rotate(-1)
            for each in _first_of(turn):
                if wall < each.expires_at and not each.paused:
                    for model, placement in each.placements.items():
                        request = None
                        if model in models:
                            request = _take(placement, lane, side_by_side=side_by_side, is_end=model in last)
                        if request is not None:
                            self._places[request] = placement, lane
                            return request
        return None

    def _rank(self) -> None:
        """Let each turn know those that come before it, if anything has changed."""
        if self._is_ranked:
            return
        self._is_ranked = True
        ranked: dict[str, list[_Turn]] = defaultdict(list)
        for turn in self._turns.values():
            ranked[turn.organisation].append(turn)
        for turns in ranked.values():
            above: tuple[deque[_Turn], ...] = ()
            for _, level in groupby(sorted(turns, key=_descending), key=_descending):
                equals = deque(level)
                for turn in equals:
                    turn.above = above
                above = (*above, equals)

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


def _turn(work: Work) -> _Turn:
    facts = work.claim.batch.object
    if facts.expires_at is None:
        raise ValueError(f"{facts.id} has no end of its window")
    return _Turn(
        organisation=work.claim.batch.organisation_id,
        expires_at=facts.expires_at,
        priority=facts.priority,
        paused=facts.paused_at is not None,
    )


def _descending(turn: _Turn) -> int:
    return -turn.priority


def _first_of(turn: _Turn) -> Iterator[_Turn]:
    """Yield the turns that come before this one, and it: those of a level in turns."""
    for level in turn.above:
        for _ in range(len(level)):
            level.rotate(-1)
            yield level[-1]
    yield turn


def _take(placement: Placement[Request], lane: Hashable, *, side_by_side: int, is_end: bool) -> Request | None:
    """Return the next line for a lane; what was withdrawn since it was offered goes."""
    while (request := placement.take(lane, side_by_side=side_by_side, is_end=is_end)) is not None:
        if request.is_offered:
            return request.work.take(request)
        placement.ended(lane, request.record.prefix, answered=False)
    return None
