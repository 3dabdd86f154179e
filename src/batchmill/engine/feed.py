"""The lines in a worker's hands: claimed Slices, their holes, and whose turn it is."""

import heapq
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count, islice

from batchmill.ledger.ledger import Claim, Portion
from batchmill.ledger.segment import Result
from batchmill.schedule.order import BYTES_PER_TOKEN
from batchmill.schedule.pace import Pace
from batchmill.schedule.plan import SLICE_LINES, Record
from batchmill.spec.layout import Envelope
from batchmill.store.slice import Bitmap

SUSPECT_DEATHS = 3  # owners that died in a row without a commit: one of the Slice's lines may be what kills them


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """One line as work.

    `sends` are all of this claim, `attempts` those used up, `falls` those that failed as the only one in flight;
    `doubted` is where and when (boot clock) it failed last, while nobody knows yet whose fault that was.
    """

    work: "Work"
    index: int
    record: Record
    sends: int = 0
    attempts: int = 0
    falls: int = 0
    doubted: tuple[Pace, float] | None = None
    sent: tuple[Pace, float] | None = None  # where and when (boot clock) it was sent last

    def leaves(self, pace: Pace, now: float) -> None:
        """Count a send (boot clock)."""
        self.work.out += 1
        self.sends += 1
        self.sent = (pace, now)

    @property
    def prompt_tokens(self) -> int:
        """A guess at the tokens of its prompt."""
        return self.record.length // BYTES_PER_TOKEN


class Work:
    """A claimed Slice: which of its lines are to send, which are out, which Results are not durable yet.

    `lone` lines go one by one, with nothing else in flight, if what killed its owners may be among them: so many as may
    have been in flight then.

    With `once`, no line leaves before the row says that it may have been sent: see `announce`. `doubtful` are then the
    lines that an earlier owner may have sent and whose outcome nobody knows.
    """

    def __init__(self, *, claim: Claim, lone: int, once: bool = False) -> None:
        self.claim = claim
        self.batch_id = claim.slice.batch_id
        self.model = claim.slice.model
        self.text: bytes | None = None  # the input's bytes from `text_from` on, once loaded
        self.text_from = 0
        self.out = 0
        self.closing_since: float | None = None  # boot clock
        self.expires_at = _expires_at(claim)  # Unix seconds: no send starts later
        held = claim.slice
        # Whose last owner died over a lone line goes on where that one was.
        self._lone = lone if held.crashes >= SUSPECT_DEATHS or held.alone is not None else 0
        self._done = bytearray(held.done)
        self._sent = bytearray(held.sent or len(held.done)) if once else None
        self._announced = bytes(self._sent or b"")  # as the row has it
        self._uncertain: set[int] = set()  # sent, not answered
        holes = [Request(work=self, index=i, record=claim.records[i]) for i in _holes(held.done, held.lines)]
        self.doubtful = [request for request in holes if self._sent is not None and _has(self._sent, request.index)]
        doubtful = {request.index for request in self.doubtful}
        # The line that the last owner died over goes first: it is the one to be counted.
        sendable = sorted((r for r in holes if r.index not in doubtful), key=lambda r: r.index != held.alone)
        self._pending = deque(sendable)
        self._left = len(holes)
        self._results: list[Result] = []

    @property
    def pending(self) -> int:
        """How many lines can be sent now."""
        return len(self._pending)

    @property
    def suspect(self) -> bool:
        """Whether its next line is to go alone."""
        return self._lone > 0

    @property
    def ended(self) -> bool:
        """Whether every line has its Result, durable or not."""
        return self._left == 0

    @property
    def idle(self) -> bool:
        """Whether nothing of it is out and nothing waits to become durable."""
        return self.out == 0 and not self._results

    @property
    def is_wanting(self) -> bool:
        """Whether its bytes are to be loaded."""
        return self.text is None and bool(self._pending or self.doubtful)

    def span(self) -> tuple[int, int]:
        """Return offset and length of the input's bytes that its open lines lie in."""
        records = [request.record for request in (*self._pending, *self.doubtful)]
        first = min(record.offset for record in records)
        return first, max(record.offset + record.length for record in records) - first

    def envelope(self, request: Request) -> Envelope:
        """Return a line's custom_id and body as the user wrote them, where validation found them."""
        if self.text is None:
            raise ValueError("a line was asked for before its Slice was loaded")
        record = request.record
        line = record.offset - self.text_from
        start, body = line + record.id_offset, line + record.body_offset
        return Envelope(self.text[start : start + record.id_length], self.text[body : body + record.body_length])

    def announce(self, count: int) -> Bitmap | None:
        """Return the lines that may have been sent once the next `count` go; None if the row says just that already."""
        if self._sent is None:
            return None
        sent = bytearray(self._sent)
        for request in islice(self._pending, count):
            _set(sent, request.index)
        return bytes(sent) if sent != self._announced else None

    def announced(self, sent: Bitmap) -> None:
        """Let these lines go: the row says durably by now that they may have been sent."""
        self._sent, self._announced = bytearray(sent), sent

    def take(self) -> Request | None:
        """Take the next line to send, if it may be sent."""
        if not self._pending or (self._sent is not None and not _has(self._sent, self._pending[0].index)):
            return None
        request = self._pending.popleft()
        self._uncertain.add(request.index)
        return request

    def came_back(self, request: Request, *, undone: bool) -> None:
        """Note that a sent line was answered; one that is `undone` has not run, and is announced anew when it goes."""
        self._uncertain.discard(request.index)
        if undone and self._sent is not None:
            self._sent[request.index >> 3] &= ~(1 << (request.index & 7))

    def put_back(self, request: Request) -> None:
        """Take a line back: to be sent before the others, or behind them if the backend fell over it."""
        if request.falls:
            self._pending.append(request)
        else:
            self._pending.appendleft(request)

    def uncertain(self) -> Bitmap | None:
        """Return the lines that were sent and are not done, for the next owner; None where nobody keeps account."""
        if self._sent is None:
            return None
        left = bytearray(len(self._sent))
        doubtful, results = (r.index for r in self.doubtful), (r.index for r in self._results)
        for index in (*self._uncertain, *doubtful, *results):
            _set(left, index)
        return bytes(left)

    def close(self, now: float) -> None:
        """Send nothing more of it: its batch is closing."""
        self._pending.clear()
        self.closing_since = now if self.closing_since is None else self.closing_since

    def record(self, result: Result) -> None:
        """Keep a line's Result for the next group commit."""
        _set(self._done, result.index)
        self._left -= 1
        self._results.append(result)

    def stood(self, portion: Portion) -> None:
        """Note that Results are durable: lines that went alone and killed nobody clear those behind them."""
        self._lone = max(0, self._lone - len(portion.results))

    def keep(self, portion: Portion) -> None:
        """Take Results back that could not be made durable yet."""
        self._results[:0] = portion.results

    def portion(self) -> Portion | None:
        """Hand over all Results that are not durable, with the bitmap that goes with them."""
        if not self._results:
            return None
        results, self._results = self._results, []
        return Portion(slice=self.claim.slice, results=results, done=bytes(self._done), closed=self.ended)


def _has(bitmap: bytes | bytearray, index: int) -> bool:
    return bool(bitmap[index >> 3] >> (index & 7) & 1)


def _set(bitmap: bytearray, index: int) -> None:
    bitmap[index >> 3] |= 1 << (index & 7)


def _holes(done: Bitmap, lines: int) -> list[int]:
    return [index for index in range(lines) if not _has(done, index)]


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
    def slice_lines(self) -> float:
        """How many lines a Slice in hand has, on average: few where a file changes its model from line to line."""
        lines = [work.claim.slice.lines for work in self]
        return sum(lines) / len(lines) if lines else SLICE_LINES

    def is_loaded(self, model: str) -> bool:
        """Say whether a line for this model could be sent at once."""
        return any(work.text is not None and work.pending for work in self if work.model == model)

    def suspect(self, *, models: Collection[str], wall: float) -> Work | None:
        """Return a loaded Slice whose next line is to go alone, if there is one (`models`, `wall` as in `next`)."""
        suspects = (work for work in self if work.suspect and work.model in models)
        ready = (work for work in suspects if work.pending and work.text is not None)
        return next((work for work in ready if wall < work.expires_at), None)

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
                if work.pending and work.text is not None and work.model in models and not work.suspect:
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
