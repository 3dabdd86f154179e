"""Lines of a batch with the same body, to the byte: one of them is sent, and its answer is every one's (`coalesce`).

The Plan has them side by side, so the others mostly wait while the first is out, or come soon after. What was answered
is kept for a while: a line that comes when its twin's answer is forgotten is sent itself.
"""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from hashlib import blake2b

from batchmill.engine.work import Request
from batchmill.ledger.segment import Result
from batchmill.spec.results import readdressed, result_id, status_of

_KEPT_BYTES = 32 << 20  # of answers
_BESIDE = 600  # bytes that one takes beside its text
_MOST_WAITING = 1024  # lines, over all: they are bound by nothing else; one more is sent itself
_SERVER_ERROR = 500

_Key = tuple[str, bytes]  # batch, and digest of the body


@dataclass(frozen=True, slots=True)
class _Answer:
    line: int
    custom_id: bytes
    result: Result


class Twins:
    """Who waits for whom; `kept_bytes` are those of answers kept, about."""

    def __init__(self, *, kept_bytes: int = _KEPT_BYTES) -> None:
        self._most = kept_bytes
        self._kept = 0
        self._waits = 0
        self._out: dict[_Key, Request] = {}
        self._keys: dict[Request, _Key] = {}  # of those that are out
        self._waiting: defaultdict[Request, list[Request]] = defaultdict(list)
        self._answers: OrderedDict[_Key, _Answer] = OrderedDict()

    def meet(self, request: Request) -> Result | Request | None:
        """Return a line's Result, if a twin was answered, or the twin that it waits for; None: it is to be sent."""
        key = request.work.batch_id, blake2b(request.work.envelope(request).body, digest_size=32).digest()
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
            return _as_its_own(request, answer)
        first = self._out.get(key)
        if first is None:
            self._out[key], self._keys[request] = request, key
        elif self._waits < _MOST_WAITING:
            self._waits += 1
            self._waiting[first].append(request)
        else:
            return None
        return first

    def answered(self, first: Request, result: Result) -> list[tuple[Request, Result]]:
        """Keep what a line got, if that is the body's own answer; return who waited for it, with their Results."""
        key, status = self._keys.get(first), status_of(result.text)
        if key is None or status is None or status >= _SERVER_ERROR:  # one line's bad luck is no other's
            return []
        del self._out[key], self._keys[first]
        answer = self._answers[key] = _Answer(first.record.line, first.work.envelope(first).custom_id, result)
        self._kept += _size(answer)
        while self._kept > self._most:
            _, forgotten = self._answers.popitem(last=False)
            self._kept -= _size(forgotten)
        return [(twin, _as_its_own(twin, answer)) for twin in self._freed(first)]

    def ended(self, first: Request) -> list[Request]:
        """Forget a line whose call is over; return those that have waited for it in vain."""
        key = self._keys.pop(first, None)
        if key is not None:
            del self._out[key]
        return self._freed(first)

    def _freed(self, first: Request) -> list[Request]:
        twins = self._waiting.pop(first, [])
        self._waits -= len(twins)
        return twins


def _size(answer: _Answer) -> int:
    return len(answer.result.text) + _BESIDE


def _as_its_own(twin: Request, answer: _Answer) -> Result:
    """Return an answer as that of a twin, never sent itself: what it took of tokens was counted once."""
    text = readdressed(
        answer.result.text,
        line_id=result_id(twin.work.batch_id, answer.line),
        custom_id=answer.custom_id,
        new_line_id=result_id(twin.work.batch_id, twin.record.line),
        new_custom_id=twin.work.envelope(twin).custom_id,
    )
    return Result(index=twin.index, succeeded=answer.result.succeeded, attempts=0, text=text, usage=None)
