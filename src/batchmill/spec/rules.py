"""What one line of input must be, whatever the others say: a quick look that accepts, a careful one that explains.

The quick look is one typed decode and declines whatever it is not sure of; the careful look is the truth, and reports
every rule that the line breaks (contract c.3, rows 15 to 27). Neither builds an object of the body.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from batchmill.schedule.order import BYTES_PER_TOKEN, DEPTHS
from batchmill.spec.errors import clip
from batchmill.spec.layout import Envelope, Layout, learn
from batchmill.spec.limits import Limits
from batchmill.spec.media import inward_url, may_hold_media
from batchmill.spec.mistakes import likely_mistake, likely_mistake_of_value
from batchmill.spec.objects import LineError
from batchmill.spec.utf8 import Utf8

# The typed decoder skips what it does not keep without a look at its UTF-8, hence the explicit decode() below; and
# neither of the last two is an error of msgspec's own (dependencies, 2).
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

MEMBERS = ("custom_id", "method", "url", "body")  # contract c.1: four, all required

# The member of the body that an endpoint cannot do without, and whether plain text will do for it.
_INPUT: Mapping[str, tuple[str, bool]] = MappingProxyType(
    {
        "/v1/chat/completions": ("messages", False),
        "/v1/completions": ("prompt", True),
        "/v1/embeddings": ("input", True),
        "/v1/responses": ("input", True),
        "/v1/moderations": ("input", True),
    }
)
_NOTHING = msgspec.Raw(b"")
_LESSONS = 16  # layouts tried to be learnt in a file: one that changes all the time is not worth it
_SEEN = DEPTHS[-1]  # bytes of a prompt's beginning
_MOST_TOKENS = 7  # digits: more than any model can write
_ALLOWED = ("max_completion_tokens", "max_tokens", "max_output_tokens")  # the first that says something counts
SILENT = frozenset({"/v1/embeddings", "/v1/moderations"})  # endpoints whose lines let nothing be generated

_ENCODINGS = (  # what a file in another encoding begins with: its byte order mark, or a `{` among zeros
    ("UTF-32", (b"\xff\xfe\0\0", b"\0\0\xfe\xff", b"{\0\0\0", b"\0\0\0{")),
    ("UTF-16", (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{")),
)
_BYTE = re.compile(r"\(byte (\d+)\)$")  # the end of msgspec's message, from 0; it has none when the input is cut off
_MARK = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}:]', re.DOTALL)  # all that structure needs, in valid JSON


class _Envelope(msgspec.Struct, gc=False):
    custom_id: msgspec.Raw
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct, gc=False):
    model: str
    stream: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    tools: msgspec.Raw = _NOTHING
    max_completion_tokens: msgspec.Raw = _NOTHING
    max_tokens: msgspec.Raw = _NOTHING
    max_output_tokens: msgspec.Raw = _NOTHING
    n: msgspec.Raw = _NOTHING


_ANY = msgspec.json.Decoder(msgspec.Raw)
_ENVELOPE = msgspec.json.Decoder(_Envelope)
_BODY = msgspec.json.Decoder(_Body)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRING = msgspec.json.Decoder(str)


class Facts(NamedTuple):
    """What a line says. A member that is not usable is None, and an error says why."""

    custom_id: str | None
    token: bytes  # the raw JSON string of the custom_id, quotes included
    body: bytes  # as it is
    model: str | None
    tokens: int  # estimate of what the line costs
    output: int = 0  # of these: tokens that it allows to be generated
    prompt: bytes | memoryview = b""  # how the prompt begins, as written: all by which a model's cache knows it
    errors: tuple[LineError, ...] = ()


class Rules:
    """The rules for the lines of one file."""

    def __init__(self, *, endpoint: str, limits: Limits) -> None:
        self._endpoint = endpoint
        self._limits = limits
        self._input, self._text_will_do = _INPUT.get(endpoint, ("", True))
        # The bytes beside custom_id and body, in the form of json.dumps; the compact form has seven fewer. To name one
        # of the four a second time takes at least eight (`"url":0,`), so that no line within this does.
        self._frame = len('{"custom_id": , "method": "POST", "url": "", "body": }') + len(endpoint)
        self._utf8 = Utf8()
        self._layout: Layout | None = None
        self._lessons = _LESSONS
        self._max_custom_id = limits.max_custom_id
        self._public = limits.media_urls == "public"

    def quick(self, text: bytes) -> Facts | None:
        """Return the facts of a line that surely is good, or None: look carefully."""
        try:
            self._utf8.check(text)
            envelope = None if self._layout is None else self._layout.split(text)
            if envelope is None:
                return self._anew(text)
            custom_id = envelope.custom_id[1:-1].decode()
            # A control character is no JSON; the others that are not printable are, and rare.
            return self._values(text, custom_id, envelope) if custom_id.isprintable() else self._anew(text)
        except UNREADABLE:
            return None

    def _anew(self, text: bytes) -> Facts | None:
        """Look at a line that is laid out in its own way, and remember that way."""
        envelope = self._envelope(text)
        if envelope is None:
            return None
        facts = self._values(text, _STRING.decode(envelope.custom_id), envelope)
        if facts is not None and self._lessons:
            self._lessons -= 1
            self._layout = learn(text, envelope, self._envelope) or self._layout
        return facts

    def _envelope(self, text: bytes) -> Envelope | None:
        """Return the values of a line whose other two members are right and that has no fifth."""
        envelope = _ENVELOPE.decode(text)
        token, body = bytes(envelope.custom_id), bytes(envelope.body)
        if len(text) - len(token) - len(body) > self._frame:
            return None
        return Envelope(token, body) if envelope.method == "POST" and envelope.url == self._endpoint else None

    def _values(self, text: bytes, custom_id: str, envelope: Envelope) -> Facts | None:
        """Look at the two values of a line."""
        body = _BODY.decode(envelope.body)
        if (
            not 0 < len(custom_id) <= self._max_custom_id
            or not body.model
            or _streams(body.stream)
            or (self._input and not _usable(getattr(body, self._input), text_will_do=self._text_will_do))
            or self._too_deep(text)
            or (self._public and may_hold_media(envelope.body))
        ):
            return None
        output = _output(body.max_completion_tokens, body.max_tokens, body.max_output_tokens, answers=body.n)
        prompt = _beginning(body.tools, getattr(body, self._input) if self._input else _NOTHING)
        tokens = len(envelope.body) // BYTES_PER_TOKEN + output
        return Facts(custom_id, envelope.custom_id, envelope.body, body.model, tokens, output, prompt)

    def careful(self, text: bytes, number: int) -> Facts:
        """Return the facts of any line, with an error for every rule that it breaks; `number` is its own."""
        found = _Findings(number)
        unreadable = self._unreadable(text, number)
        if unreadable:
            found.add("invalid_json_line", unreadable, None)
            return Facts(None, b"", b"", None, 0, errors=found.errors)
        try:
            members = _OBJECT.decode(text)
        except msgspec.ValidationError:
            message = _told(f"Line {number} must be a JSON object.", likely_mistake_of_value(text))
            found.add("invalid_request", message, None)
            return Facts(None, b"", b"", None, 0, errors=found.errors)
        for name in _repeated(text):
            found.add("invalid_request", f"'{name}' stands more than once on line {number}.", name)
        for name in MEMBERS:
            if name not in members:
                found.add("missing_required_parameter", f"Line {number} has no '{name}'.", name)
        custom_id = self._custom_id(members, found)
        self._fixed(members, "method", "POST", "invalid_method", found)
        self._fixed(members, "url", self._endpoint, "invalid_url", found)
        model, output, prompt = self._body(members, found)
        token, raw = (bytes(members.get(name, b"")) for name in ("custom_id", "body"))
        tokens = len(raw) // BYTES_PER_TOKEN + output
        return Facts(custom_id, token, raw, model, tokens, output, prompt, found.errors)

    def _unreadable(self, text: bytes, number: int) -> str | None:
        """Return why the line is no JSON that we read, or None."""
        for encoding, beginnings in _ENCODINGS:
            if text.startswith(beginnings):
                return f"Line {number} is not UTF-8: it looks like {encoding}."
        try:
            text.decode()
            _ANY.decode(text)
        except UnicodeDecodeError as error:
            return _told(f"Line {number} is not UTF-8 (byte {error.start + 1} of the line).", likely_mistake(text))
        except RecursionError:
            return self._deep(number)
        except msgspec.DecodeError as fault:
            if b"\r" in text:
                return (
                    f"Line {number} is not valid JSON. It holds bare carriage returns: CR-only line ends are not read."
                )
            return _told(f"Line {number} is not valid JSON ({_place(fault)}).", likely_mistake(text))
        return self._deep(number) if self._too_deep(text) else None

    def _deep(self, number: int) -> str:
        return f"Line {number} is nested deeper than {self._limits.max_depth} levels."

    def _too_deep(self, text: bytes) -> bool:
        most = self._limits.max_depth
        if len(text) <= 2 * most:
            return False
        # replace() looks for a bracket sixteen bytes at a time, count() one by one: 2 or 20 microseconds for 43 KB.
        fewer = len(text.replace(b"{", b"", most + 1)) + len(text.replace(b"[", b"", most + 1))
        # In nearly every line there are too few brackets for that many levels.
        return 2 * len(text) - fewer > most and _depth(text) > most

    def _custom_id(self, members: Mapping[str, msgspec.Raw], found: "_Findings") -> str | None:
        custom_id = found.string(members, "custom_id", "custom_id")
        if custom_id is None:
            return None
        if not 0 < len(custom_id) <= self._limits.max_custom_id:
            most = self._limits.max_custom_id
            found.add("invalid_request", f"'custom_id' must have 1 to {most} characters.", "custom_id")
            return None
        return custom_id

    def _fixed(self, members: Mapping[str, msgspec.Raw], name: str, only: str, code: str, found: "_Findings") -> None:
        text = found.string(members, name, name)
        if text is not None and text != only:
            found.add(code, f"'{name}' must be '{only}', not {clip(text)}.", name)

    def _body(
        self, members: Mapping[str, msgspec.Raw], found: "_Findings"
    ) -> tuple[str | None, int, bytes | memoryview]:
        """Return the body's model, the tokens that it allows to be generated, and how its prompt begins."""
        if "body" not in members:
            return None, 0, b""
        raw = members["body"]
        try:
            body = _OBJECT.decode(raw)
        except msgspec.ValidationError:
            found.add("invalid_request", "'body' must be a JSON object.", "body")
            return None, 0, b""
        if "model" not in body:
            found.add("invalid_request", "'body.model' is missing.", "body.model")
        model = found.string(body, "model", "body.model")
        if model == "":
            found.add("invalid_request", "'body.model' is empty.", "body.model")
        if self._input and not _usable(body.get(self._input, _NOTHING), text_will_do=self._text_will_do):
            param = f"body.{self._input}"
            expected = "a string or a non-empty array" if self._text_will_do else "a non-empty array"
            found.add("invalid_request", f"'{param}' must be {expected}.", param)
        if self._limits.media_urls == "public" and (inward := inward_url(bytes(raw))) is not None:
            param = f"body.{self._input}"  # or a repetition of it: parsers differ on which of the two counts
            found.add("invalid_request", f"'{param}' has a media URL that is not public: {inward}.", param)
        if _streams(body.get("stream", _NOTHING)):
            found.add("streaming_unsupported", "'body.stream' must be false or left out.", "body.stream")
        first, second, third = (body.get(name, _NOTHING) for name in _ALLOWED)
        prompt = _beginning(body.get("tools", _NOTHING), body.get(self._input, _NOTHING))
        return model or None, _output(first, second, third, answers=body.get("n", _NOTHING)), prompt


class _Findings:
    """The errors of one line, as they are found."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._errors: list[LineError] = []

    @property
    def errors(self) -> tuple[LineError, ...]:
        return tuple(self._errors)

    def add(self, code: str, message: str, param: str | None) -> None:
        self._errors.append(LineError(code=code, message=message, param=param, line=self._number))

    def string(self, members: Mapping[str, msgspec.Raw], name: str, param: str) -> str | None:
        """Return a member that must be a string; None if it is missing, or is not one, which is noted."""
        if name not in members:
            return None
        try:
            return _STRING.decode(members[name])
        except msgspec.ValidationError:
            self.add("invalid_request", f"'{param}' must be a string.", param)
            return None


def _told(rule: str, guess: str | None) -> str:
    return rule if guess is None else f"{rule} {guess}"


def _place(fault: msgspec.DecodeError) -> str:
    """Return where a line stops being JSON."""
    byte = _BYTE.search(str(fault))
    return f"byte {int(byte[1]) + 1} of the line" if byte else "it ends too early"


def _streams(raw: msgspec.Raw) -> bool:
    """Say whether a `stream` member asks for a stream: anything but false and null may, on one backend or another."""
    return len(raw) > 0 and bytes(raw) not in {b"false", b"null"}


def _usable(raw: msgspec.Raw, *, text_will_do: bool) -> bool:
    """Say whether an input member is a non-empty array, or a string where that will do."""
    text = bytes(raw)
    if text.startswith(b'"'):
        return text_will_do
    return text.startswith(b"[") and (text[1:2] not in b" \t\r\n]" or text[1:-1].strip() != b"")


def _output(first: msgspec.Raw, second: msgspec.Raw, third: msgspec.Raw, *, answers: msgspec.Raw) -> int:
    """Return the tokens that a line allows to be generated: the first of these that is a sane number, for each answer.

    0 where it says nothing of that. It is no more than any model can write, whatever the number of answers.
    """
    tokens = (first and _number(first)) or (second and _number(second)) or (third and _number(third)) or 0
    return min(tokens * (_number(answers) or 1), 10**_MOST_TOKENS - 1) if answers else tokens


def _number(raw: msgspec.Raw) -> int:
    """Return a sane number, 0 for anything else."""
    digits = bytes(raw)
    return int(digits) if digits.isdigit() and len(digits) <= _MOST_TOKENS else 0


def _beginning(tools: msgspec.Raw, content: msgspec.Raw) -> bytes | memoryview:
    """Return how a prompt begins, in the order of the usual templates: the tools, then what is said."""
    return b"".join((memoryview(tools)[:_SEEN], memoryview(content)[:_SEEN])) if tools else memoryview(content)


def _depth(text: bytes) -> int:
    """Return how deep valid JSON is nested, in a constant amount of memory."""
    depth = deepest = 0
    for match in _MARK.finditer(text):
        mark = match[0]
        if mark in (b"{", b"["):
            depth += 1
            deepest = max(deepest, depth)
        elif mark in (b"}", b"]"):
            depth -= 1
    return deepest


def _repeated(text: bytes) -> list[str]:
    """Return the envelope's own members that stand more than once at the top of a line.

    Parsers differ on which of the two counts, so such a line is refused; inside the body it is the backend's business.
    """
    seen = dict.fromkeys(MEMBERS, 0)
    depth, last = 0, b""
    for match in _MARK.finditer(text):
        mark = match[0]
        if mark in (b"{", b"["):
            depth += 1
        elif mark in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and mark == b":":
            name = _STRING.decode(last)
            if name in seen:
                seen[name] += 1
        else:
            last = mark
    return [name for name, times in seen.items() if times > 1]
