"""The lines of an input file: read one by one in bounded memory, checked, and every fault reported at once."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import msgspec

from batchmill.spec.errors import clip
from batchmill.spec.layout import Envelope
from batchmill.spec.limits import Limits
from batchmill.spec.models import NOTHING_CONFIGURED, Catalogue
from batchmill.spec.objects import LineError, more_errors
from batchmill.spec.repeats import EveryId, Ids
from batchmill.spec.rules import UNREADABLE, Facts, Rules

_BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 20  # bytes of a long line read at once


class RawLine(NamedTuple):
    """A physical line that is not blank."""

    number: int  # from 1; blank lines count, too
    offset: int  # of the text in the file, in bytes
    text: bytes  # without its line end; empty when over
    over: bool  # longer than allowed


class Line(NamedTuple):
    """A good line: what the Plan keeps of it."""

    number: int
    offset: int
    length: int
    custom_id_offset: int  # of the raw JSON string, quotes included, within the line
    custom_id_length: int
    body_offset: int  # within the line
    body_length: int
    model: str
    tokens: int  # estimate
    output: int  # of these: what it allows to be generated
    prompt: bytes | memoryview  # how the prompt begins, as written


class _Envelope(msgspec.Struct, gc=False):
    custom_id: msgspec.Raw
    body: msgspec.Raw


class _Url(msgspec.Struct, gc=False):
    url: str


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_URL = msgspec.json.Decoder(_Url)


def read_lines(readline: Callable[[int], bytes], max_line_bytes: int) -> Iterator[RawLine]:
    r"""Yield the lines that are not blank (contract c.3, reading rules).

    Lines end at \n only; one \r before it is dropped, and a byte order mark at the very start. A longer line than
    max_line_bytes is flagged and its text skipped, so that no more than that is ever held.

    Args:
        readline: As of a binary file: up to that many bytes, up to and with the next \n; b"" at the end.
        max_line_bytes: The longest text allowed.
    """
    most = max_line_bytes + len(_BOM) + len(b"\r\n")
    piece = min(_PIECE, most)
    number = end = 0
    while chunk := readline(piece):
        if len(chunk) == piece and not chunk.endswith(b"\n"):
            chunk = _whole(readline, chunk, most)
        number, offset, end = number + 1, end, end + len(chunk)
        if number == 1 and chunk.startswith(_BOM):
            chunk, offset = chunk[len(_BOM) :], len(_BOM)
        text = chunk.removesuffix(b"\n").removesuffix(b"\r")
        if len(text) > max_line_bytes:
            ended, chunk, text = chunk.endswith(b"\n"), b"", b""
            while not ended and (chunk := readline(piece)):
                ended, end = chunk.endswith(b"\n"), end + len(chunk)
            yield RawLine(number, offset, b"", over=True)
        elif text and not text.isspace():
            yield RawLine(number, offset, text, over=False)


def _whole(readline: Callable[[int], bytes], first: bytes, most: int) -> bytes:
    """Return a long line, or `most` bytes of one that is longer; in pieces, since one call takes the memory twice."""
    pieces, size = [first], len(first)
    while size < most and not pieces[-1].endswith(b"\n") and (piece := readline(min(_PIECE, most - size))):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def split_envelope(text: bytes) -> Envelope:
    """Return the custom_id and the body of a line that was checked; msgspec.MsgspecError if it is no such line."""
    envelope = _ENVELOPE.decode(text)
    return Envelope(bytes(envelope.custom_id), bytes(envelope.body))


def likely_endpoint(first_line: bytes, limits: Limits) -> str:
    """Return the endpoint that a file is for when nobody says: its first line's `url`, if that is one of ours."""
    with suppress(*UNREADABLE):  # the check of the line will say what is wrong with it
        url = _URL.decode(first_line).url
        if url in limits.endpoints:
            return url
    return limits.default_endpoint


class Checker:
    """Checks the lines of one file, in their order.

    Args:
        endpoint: The batch's; every line's `url` must equal it.
        limits: What is allowed.
        known_models: The models that some backend serves; None takes any.
        catalogue: What is configured of models.
        ids: Tells a custom_id that was used before; left out, every one is remembered.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        limits: Limits,
        known_models: Collection[str] | None,
        catalogue: Catalogue = NOTHING_CONFIGURED,
        ids: Ids | None = None,
    ) -> None:
        self._rules = Rules(endpoint=endpoint, limits=limits)
        self._limits = limits
        self._known = None if known_models is None else frozenset(known_models)
        self._catalogue = catalogue
        self._models: dict[str, None] = {}
        self._ids = EveryId() if ids is None else ids

    @property
    def models(self) -> list[str]:
        """The known models that the file uses, as it names them, in order of first use."""
        return list(self._models)

    def check(self, raw: RawLine) -> Line | tuple[LineError, ...]:
        """Return the line for the Plan, or everything that is wrong with it."""
        if raw.over:
            return (_too_long(raw.number, self._limits.max_line_bytes),)
        facts = self._rules.quick(raw.text) or self._rules.careful(raw.text, raw.number)
        repeated, wrong = self._repeated_id(facts, raw.number), self._wrong_model(facts, raw.number)
        if repeated or wrong or facts.errors or facts.model is None:
            return (*facts.errors, *(error for error in (repeated, wrong) if error))
        # Wherever token and body are found: these bytes are all that the spans are for.
        text, token, body = raw.text, facts.token, facts.body
        body_at = len(text) - len(body) - 1
        if not text.startswith(body, body_at):  # mostly it does, and to look for 43 KB takes as long as all the rest
            body_at = text.rfind(body)
        spans = text.find(token), len(token), body_at, len(body)
        return Line(raw.number, raw.offset, len(text), *spans, facts.model, facts.tokens, facts.output, facts.prompt)

    def _repeated_id(self, facts: Facts, number: int) -> LineError | None:
        if facts.custom_id is None:
            return None
        first = self._ids.first(facts.custom_id, number)
        if first is None:
            return None
        message = f"custom_id {clip(facts.custom_id)} was already used on line {first}."
        return LineError(code="duplicate_custom_id", message=message, param="custom_id", line=number)

    def _wrong_model(self, facts: Facts, number: int) -> LineError | None:
        model, most = facts.model, self._limits.models_per_file
        if model is None or model in self._models:
            return None
        if not self._catalogue.offers(model, self._known):
            message = f"There is no model {clip(model)}."
            return LineError(code="model_not_found", message=message, param="body.model", line=number)
        if most is not None and len(self._models) >= most:
            message = f"Model {clip(model)} differs from {clip(next(iter(self._models)))}; models per file: {most}."
            return LineError(code="mismatched_model", message=message, param="body.model", line=number)
        self._models[model] = None
        return None


class ErrorReport:
    """The errors of a whole file: the first of them, and the number of all."""

    def __init__(self, *, max_errors: int) -> None:
        self._most = max_errors
        self._kept: list[LineError] = []
        self._count = 0

    @property
    def count(self) -> int:
        """How many errors were added."""
        return self._count

    def add(self, errors: Iterable[LineError]) -> None:
        """Add errors, in the order in which they are to be listed."""
        for error in errors:
            self._count += 1
            if len(self._kept) < self._most:
                self._kept.append(error)

    def add_unlisted(self, count: int) -> None:
        """Count errors that nobody can list."""
        self._count += count

    def read(self, lines: Iterable[RawLine], checker: Checker) -> None:
        """Add what is wrong with these lines."""
        for raw in lines:
            checked = checker.check(raw)
            if not isinstance(checked, Line):
                self.add(checked)

    def data(self) -> list[LineError]:
        """Return the first max_errors entries and, if there were more, one that counts them (choice 12)."""
        left_out = self._count - len(self._kept)
        return [*self._kept, more_errors(left_out)] if left_out else list(self._kept)


def whole_file_errors(count: int, limits: Limits) -> Iterator[LineError]:
    """Yield what is wrong with a file of so many request lines, good or bad (contract c.3, rows 28 and 29)."""
    if count == 0:
        yield LineError(code="empty_file", message="The file holds no request lines.")
    if limits.max_lines is not None and count > limits.max_lines:
        yield LineError(code="too_many_tasks", message=f"The file holds more than {limits.max_lines} requests.")


def _too_long(number: int, max_line_bytes: int) -> LineError:
    message = f"Line {number} is longer than {max_line_bytes} bytes."
    return LineError(code="line_too_long", message=message, line=number)
