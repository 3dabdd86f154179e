"""Embeddings requests as one, and the reply as many: bytes are cut and joined, none is written anew but for numbers."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import msgspec

from batchmill.spec.models import Member, members

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # as in results: what the decoders raise
_MOST_DIGITS = 15  # of a count; more are no tokens

_NAME = re.compile(rb'[ \t\r\n,{]*"[^"\\]*(?:\\.[^"\\]*)*"[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)  # of a member

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


class Parts(NamedTuple):
    """A request's body: the bytes around its `input`, and its texts as they stand between the brackets of an array."""

    before: bytes
    texts: bytes
    after: bytes
    inputs: int


class _Entry(NamedTuple):
    """Where an entry of `data` is, and its `index`."""

    start: int
    index_start: int
    index_end: int
    end: int


class _Inseparable(Exception):  # noqa: N818 - it states what is so
    """A reply does not tell what is whose."""


def parts_of(body: bytes) -> Parts | None:
    """Return the parts of a checked body; None where its input cannot stand beside others': tokens, none, or two."""
    try:
        found = [member for member in _spans(body) if member.name == "input"]
        if len(found) != 1:
            return None
        start, end = found[0].start, found[0].end
        texts, inputs = _texts(body[start:end])
    except _UNREADABLE:
        return None
    return Parts(body[:start], texts, body[end:], inputs) if inputs else None


def pack(parts: Sequence[Parts]) -> bytes:
    """Return the body that asks for all of them, whose bytes around the inputs are the same."""
    before, _, after, _ = parts[0]
    return b"%b[%b]%b" % (before, b",".join(part.texts for part in parts), after)


def unpack(reply: bytes, parts: Sequence[Parts]) -> Sequence[bytes] | None:
    """Return each request's own reply out of that to all of them; None if it does not tell what is whose.

    A reply is as if its request had been sent alone: its entries of `data`, counted from 0, the bytes between them and
    around them as they are, and its share of each count in `usage`. Shares go by the bytes of the inputs, since nobody
    tells the tokens of each, and are rounded so that their sum is the count itself.

    Args:
        reply: A JSON object.
        parts: In the order in which they were packed.
    """

    def share(name: str, value: bytes) -> Sequence[bytes]:
        if name == "data":
            return _share_data(value, [part.inputs for part in parts])
        if name == "usage" and value.startswith(b"{"):
            return _share_counts(value, [len(part.texts) for part in parts])
        return [value] * len(parts)

    try:
        spans = _spans(reply)
        names = [member.name for member in spans]
        if names.count("data") != 1 or names.count("usage") > 1:
            return None
        return _share(reply, spans, share, len(parts))
    except (_Inseparable, *_UNREADABLE):
        return None


def _texts(value: bytes) -> tuple[bytes, int]:
    """Return what stands between the brackets of an array of these texts, and how many they are; 0 for what is none."""
    if value.startswith(b'"'):
        return value, 1
    if not value.startswith(b"["):
        return b"", 0
    entries = _LIST.decode(value)
    return value[1:-1].strip(), len(entries) * all(bytes(entry).startswith(b'"') for entry in entries)


def _share(
    text: bytes, spans: Sequence[Member], share: Callable[[str, bytes], Sequence[bytes]], number: int
) -> Sequence[bytes]:
    """Return an object so many times, each with its share of every value."""
    cuts = [(member.start, member.end, share(member.name, text[member.start : member.end])) for member in spans]
    return [_splice(text, [(start, end, shares[n]) for start, end, shares in cuts]) for n in range(number)]


def _share_data(data: bytes, inputs: Sequence[int]) -> Sequence[bytes]:
    """Return the array of each request.

    Raises:
        _Inseparable: The entries are not as many as the inputs, or not in their order.
    """
    entries = list(_entries(data)) if data.startswith(b"[") else []
    indexes = [data[entry.index_start : entry.index_end] for entry in entries]
    if indexes != [b"%d" % place for place in range(sum(inputs))]:
        raise _Inseparable
    head, tail = data[: entries[0].start], data[entries[-1].end :]
    return [head + _counted(data, entries[first:end]) + tail for first, end in pairwise(accumulate(inputs, initial=0))]


def _entries(data: bytes) -> Iterator[_Entry]:
    """Yield the entries of an array; one that has not exactly one index has an empty one."""
    end = 0
    for raw in map(bytes, _LIST.decode(data)):
        start = data.index(raw[:1], end)  # between two entries are blanks and a comma: here it begins
        end = start + len(raw)
        found = [member for member in _spans(raw) if member.name == "index"]
        index = found[0] if len(found) == 1 else Member("index", 0, 0)
        yield _Entry(start, start + index.start, start + index.end, end)


def _counted(data: bytes, entries: Sequence[_Entry]) -> bytes:
    """Return these entries, and what stands between them, with indexes from 0."""
    cuts = [(entry.index_start, entry.index_end, b"%d" % place) for place, entry in enumerate(entries)]
    return _splice(data, cuts, start=entries[0].start, end=entries[-1].end)


def _share_counts(counts: bytes, weights: Sequence[int]) -> Sequence[bytes]:
    """Return the share of each in every whole number of an object.

    Raises:
        _Inseparable: Another number is in it.
    """

    def share(_name: str, value: bytes) -> Sequence[bytes]:
        if value.startswith(b"{"):
            return _share_counts(value, weights)
        if not value[:1].isdigit() and not value.startswith(b"-"):
            return [value] * len(weights)
        if not value.isdigit() or len(value) > _MOST_DIGITS:
            raise _Inseparable
        return [b"%d" % portion for portion in _portions(int(value), weights)]

    return _share(counts, list(members(counts)), share, len(weights))


def _portions(total: int, weights: Sequence[int]) -> Iterator[int]:
    """Yield the portion of each weight; together they are the total."""
    whole = sum(weights)
    for before, after in pairwise(accumulate(weights, initial=0)):
        yield total * after // whole - total * before // whole


def _splice(text: bytes, cuts: Sequence[tuple[int, int, bytes]], *, start: int = 0, end: int | None = None) -> bytes:
    """Return a text from `start` to `end` with other bytes at the places of `cuts`, which are in order."""
    pieces: list[bytes] = []
    for cut_start, cut_end, new in cuts:
        pieces += (text[start:cut_start], new)
        start = cut_end
    return b"".join((*pieces, text[start:end]))


def _spans(text: bytes) -> Sequence[Member]:
    """Return the members of an object, those repeated each time.

    Only the names are read again: the values between them, vectors of a thousand numbers, the decoder has found. Where
    the text ends with its last value, no name stands there twice, and all are in the text's order.

    Raises:
        msgspec.MsgspecError: It is no JSON object.
    """
    spans: list[Member] = []
    end = 0
    for name, raw in _OBJECT.decode(text).items():
        found, value = _NAME.match(text, end), bytes(raw)
        if found is None or not text.startswith(value, found.end()):
            return list(members(text))
        spans.append(Member(name, found.end(), end := found.end() + len(value)))
    return spans if text[end:].strip() in (b"}", b"{}") else list(members(text))
