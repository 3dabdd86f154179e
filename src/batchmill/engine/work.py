"""A claimed Slice in a worker's hands: its lines as work, and what has become of them so far."""

from collections import deque
from dataclasses import dataclass
from itertools import islice

from batchmill.blobs.blobs import Span
from batchmill.ledger.ledger import Claim, Portion
from batchmill.ledger.segment import Result
from batchmill.schedule.order import BYTES_PER_TOKEN
from batchmill.schedule.pace import Pace
from batchmill.schedule.plan import Record
from batchmill.spec.layout import Envelope
from batchmill.store.slice import Bitmap

SUSPECT_DEATHS = 3  # owners that died in a row without a commit: one of the Slice's lines may be what kills them


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """One line as work.

    `sends` are all of this claim, `resent` how often a backend sent it again by itself, `attempts` those used up,
    `falls` those that failed as the only one in flight; `doubted` is where and when (boot clock) it failed last, while
    nobody knows yet whose fault that was.
    """

    work: "Work"
    index: int
    record: Record
    sends: int = 0
    resent: int = 0
    attempts: int = 0
    falls: int = 0
    doubted: tuple[Pace, float] | None = None
    sent: tuple[Pace, float] | None = None  # where and when (boot clock) it was sent last
    is_offered: bool = False  # it stands where lanes take lines from

    def leaves(self, pace: Pace, now: float) -> None:
        """Count a send (boot clock)."""
        self.work.out += 1
        self.sends += 1
        self.sent = (pace, now)

    @property
    def prompt_tokens(self) -> int:
        """A guess at the tokens of its prompt that are to be computed."""
        return self.record.prefill or self.record.length // BYTES_PER_TOKEN


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
        self.out = 0
        self.closing_since: float | None = None  # boot clock
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
        self._texts: dict[int, bytes] = {}  # of the open lines by index, once loaded
        self._results: list[Result] = []
        self.is_held = False  # this worker has it, and nobody has taken it over
        self.is_loaded = False
        self.size = 0  # bytes of the open lines in memory

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
    def is_tried(self) -> bool:
        """Whether a line that is left was sent before."""
        return any(request.sends for request in self._pending)

    @property
    def is_wanting(self) -> bool:
        """Whether its bytes are to be loaded."""
        return not self.is_loaded and bool(self._pending or self.doubtful)

    def spans(self) -> dict[int, Span]:
        """Return where in the input its open lines are: in the Plan's order they may lie far apart."""
        return {r.index: (r.record.offset, r.record.length) for r in (*self._pending, *self.doubtful)}

    def load(self, texts: dict[int, bytes]) -> None:
        """Take in the bytes of these spans; it may have been closed while they were read."""
        self._texts = texts
        self.size = sum(map(len, self._texts.values()))
        self.is_loaded = True

    def envelope(self, request: Request) -> Envelope:
        """Return a line's custom_id and body as the user wrote them, where validation found them."""
        text, record = self._texts[request.index], request.record
        start, body = record.id_offset, record.body_offset
        return Envelope(text[start : start + record.id_length], text[body : body + record.body_length])

    def announce(self, count: int) -> Bitmap | None:
        """Return the lines that may have been sent once the next `count` go; None if the row says just that already."""
        if self._sent is None:
            return None
        sent = bytearray(self._sent)
        for request in islice(self._pending, count):
            _set(sent, request.index)
        if sent != self._announced:
            return bytes(sent)
        self._sent = sent  # what came back undone goes again before the row has forgotten it
        return None

    def announced(self, sent: Bitmap) -> None:
        """Let these lines go: the row says durably by now that they may have been sent."""
        self._sent, self._announced = bytearray(sent), sent

    def offer(self) -> list[Request]:
        """Return the lines that may be sent from now on, beside others, and have not been offered yet."""
        if not self.is_loaded or self.suspect:
            return []
        offered = [request for request in self._pending if not request.is_offered and self._may_leave(request)]
        for request in offered:
            request.is_offered = True
        return offered

    def withdraw(self) -> None:
        """Let nothing be sent of what was offered."""
        for request in self._pending:
            request.is_offered = False

    def take(self, request: Request | None = None) -> Request | None:
        """Take a line out to be sent: this one, that was offered, or the next, if it may be sent."""
        if request is None:
            if not self._pending or not self._may_leave(self._pending[0]):
                return None
            request = self._pending[0]
        self._pending.remove(request)
        request.is_offered = False
        self._uncertain.add(request.index)
        return request

    def _may_leave(self, request: Request) -> bool:
        return self._sent is None or _has(self._sent, request.index)

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
        self.withdraw()
        self._pending.clear()
        self.closing_since = now if self.closing_since is None else self.closing_since

    def record(self, result: Result) -> None:
        """Keep a line's Result for the next group commit."""
        _set(self._done, result.index)
        self._left -= 1
        self.size -= len(self._texts.pop(result.index))
        self._results.append(result)

    def is_done(self, request: Request) -> bool:
        """Say whether a line has its Result."""
        return _has(self._done, request.index)

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
