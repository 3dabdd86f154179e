"""The lines in a worker's hands: claimed Slices, their holes, and whose turn it is."""

import heapq
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count

from batchmill.ledger.ledger import Claim, Portion
from batchmill.ledger.segment import Result
from batchmill.schedule.plan import Record


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """One line as work. `attempts` are those used up, `sends` all of this claim."""

    work: "Work"
    index: int
    record: Record
    attempts: int = 0
    sends: int = 0


class Work:
    """A claimed Slice: which of its lines are to send, which are out, which Results are not durable yet."""

    def __init__(self, *, claim: Claim) -> None:
        self.claim = claim
        self.text: bytes | None = None  # the input's bytes from `text_from` on, once loaded
        self.text_from = 0
        self.out = 0
        self.closing_since: float | None = None  # boot clock
        self.expires_at = _expires_at(claim)  # Unix seconds: no send starts later
        self._done = bytearray(claim.slice.done)
        holes = [i for i in range(claim.slice.lines) if not self._done[i >> 3] >> (i & 7) & 1]
        self._pending = deque(Request(work=self, index=i, record=claim.records[i]) for i in holes)
        self._left = len(holes)
        self._results: list[Result] = []

    @property
    def batch_id(self) -> str:
        """The batch that it is of."""
        return self.claim.slice.batch_id

    @property
    def model(self) -> str:
        """The model that its lines are for."""
        return self.claim.slice.model

    @property
    def pending(self) -> int:
        """How many lines can be sent now."""
        return len(self._pending)

    @property
    def ended(self) -> bool:
        """Whether every line has its Result, durable or not."""
        return self._left == 0

    @property
    def idle(self) -> bool:
        """Whether nothing of it is out and nothing waits to become durable."""
        return self.out == 0 and not self._results

    def span(self) -> tuple[int, int]:
        """Return offset and length of the input's bytes that its pending lines lie in."""
        first = min(request.record.offset for request in self._pending)
        last = max(request.record.offset + request.record.length for request in self._pending)
        return first, last - first

    def line(self, request: Request) -> bytes:
        """Return a line's bytes as the user wrote them."""
        if self.text is None:
            raise ValueError("a line was asked for before its Slice was loaded")
        at = request.record.offset - self.text_from
        return self.text[at : at + request.record.length]

    def take(self) -> Request | None:
        """Take the next line to send."""
        return self._pending.popleft() if self._pending else None

    def put_back(self, request: Request) -> None:
        """Take a line back, to be sent before the others."""
        self._pending.appendleft(request)

    def close(self, now: float) -> None:
        """Send nothing more of it: its batch is closing."""
        self._pending.clear()
        self.closing_since = now if self.closing_since is None else self.closing_since

    def record(self, result: Result) -> None:
        """Keep a line's Result for the next group commit."""
        self._done[result.index >> 3] |= 1 << (result.index & 7)
        self._left -= 1
        self._results.append(result)

    def portion(self) -> Portion | None:
        """Hand over all Results that are not durable, with the bitmap that goes with them."""
        if not self._results:
            return None
        results, self._results = self._results, []
        return Portion(slice=self.claim.slice, results=results, done=bytes(self._done), closed=self.ended)


def _expires_at(claim: Claim) -> float:
    expires_at = claim.batch.object.expires_at
    if expires_at is None:
        raise ValueError(f"{claim.batch.id} has no end of its window")
    return expires_at


@dataclass(slots=True)
class Feed:
    """Hands out lines, batch by batch in turns, line by line."""

    _works: dict[str, list[Work]] = field(default_factory=dict)
    _turns: deque[str] = field(default_factory=deque)
    _later: list[tuple[float, int, Request]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=count)

    def __iter__(self) -> Iterator[Work]:
        """Yield every Slice in hand."""
        return (work for works in list(self._works.values()) for work in list(works))

    def pending(self, models: Collection[str]) -> int:
        """Return how many lines for these models could be sent now."""
        return sum(work.pending for work in self if work.model in models)

    @property
    def batches(self) -> int:
        """Of how many batches there are Slices in hand."""
        return len(self._works)

    def add(self, work: Work) -> None:
        """Take a claimed Slice in."""
        if work.batch_id not in self._works:
            self._works[work.batch_id] = []
            self._turns.append(work.batch_id)
        self._works[work.batch_id].append(work)

    def remove(self, work: Work) -> None:
        """Forget a Slice: it ended, was released or lost."""
        works = self._works[work.batch_id]
        works.remove(work)
        if not works:
            del self._works[work.batch_id]
            self._turns.remove(work.batch_id)
        self._later = [entry for entry in self._later if entry[2].work is not work]
        heapq.heapify(self._later)

    def wake(self, now: float) -> None:
        """Let the lines whose wait is over be sent again (boot clock)."""
        while self._later and self._later[0][0] <= now:
            waited = heapq.heappop(self._later)[2]
            if waited.work.closing_since is None:
                waited.work.put_back(waited)

    def next(self, *, models: Collection[str], wall: float) -> Request | None:
        """Return a line for one of these models, or None; nothing of a batch past its window (`wall`, Unix seconds)."""
        for _ in range(len(self._turns)):
            works = self._works[self._turns[0]]
            self._turns.rotate(-1)
            for work in works:
                if work.text is not None and work.model in models:
                    request = work.take() if wall < work.expires_at else None
                    if request is not None:
                        return request
        return None

    def put_back(self, request: Request, *, at: float) -> None:
        """Take a line back, to be sent at `at` (boot clock) or later."""
        if request.work.closing_since is None:
            heapq.heappush(self._later, (at, next(self._order), request))

    def wakes_at(self) -> float | None:
        """Return when the next waiting line may be sent (boot clock)."""
        return self._later[0][0] if self._later else None
