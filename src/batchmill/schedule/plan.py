"""The order in which a batch's Requests are sent: a fixed-size binary record a line, cut into Slices."""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

SLICE_LINES = 256  # design, data path, row 5
SLICE_BYTES = 8 << 20

_RECORD = struct.Struct("<QIIIIIIIIII")
RECORD_BYTES = _RECORD.size
_LINE = struct.Struct("<12xI32x")  # its line only
_SPAN = struct.Struct("<QI36x")  # where its line is only
_OFFSET = struct.Struct("<Q")
_CLOSE = 4 << 10  # bytes: to read so many in vain costs next to nothing
_JUMPS = 64  # lines for each one that is elsewhere: four of a Slice
_FEW = 16  # such ones are too few to do anything for


class Record(NamedTuple):
    """One line of input as planned. All numbers, all unsigned; a Plan has one model table beside it."""

    offset: int  # of the line in the input File, in bytes
    length: int  # of the line, in bytes, without its line end
    line: int  # physical line number, from 1
    id_offset: int  # of the raw custom_id token, quotes included, within the line
    id_length: int
    body_offset: int  # of the body within the line
    body_length: int
    model: int  # index into the batch's models, in order of first use
    tokens: int  # estimate of what the line costs
    prefix: int  # mark of the prompt's beginning, alike in neighbours that share it; 0 for none (see order)
    prefill: int = 0  # tokens of the prompt that the engine is left to compute when lines go in this order


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A Slice of the Plan: `lines` records from the record `first` on, all of one model."""

    first: int
    lines: int
    bytes: int  # of the input lines, together
    model: int
    tokens: int  # of the lines, by estimate


def pack(record: Record) -> bytes:
    """Return the RECORD_BYTES bytes of a record; struct.error if a number does not fit."""
    return _RECORD.pack(*record)


def unpack(data: bytes | bytearray | memoryview) -> Iterator[Record]:
    """Yield the records of a Plan or of any whole part of it; struct.error if a record is cut short."""
    return map(Record._make, _RECORD.iter_unpack(data))


def record_at(data: bytes | memoryview, place: int) -> Record:
    """Return the record at a place of a Plan, or of any whole part of it."""
    return Record._make(_RECORD.unpack_from(data, place * RECORD_BYTES))


def line_numbers(data: bytes | memoryview) -> list[int]:
    """Return the physical line number of each record, in the Plan's order."""
    return [line for (line,) in _LINE.iter_unpack(data)]


def line_spans(data: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yield the offset and the length of each record's line, in the Plan's order."""
    return _SPAN.iter_unpack(data)


def is_scattered(data: bytes | bytearray) -> bool:
    """Say whether neighbours in the Plan lie far from each other in the file, more often than rarely."""
    end = jumps = 0
    for offset, length in line_spans(data):
        jumps += not end <= offset <= end + _CLOSE
        end = offset + length
    return jumps > _FEW + len(data) // RECORD_BYTES // _JUMPS


def lay_out(data: bytearray, begin: int) -> None:
    """Let the lines of the records stand in the Plan's order from the offset `begin` on, a line end behind each."""
    for at, (_, length) in enumerate(line_spans(bytes(data))):
        _OFFSET.pack_into(data, at * RECORD_BYTES, begin)
        begin += length + 1


def cut(
    records: Iterable[Record], max_lines: int = SLICE_LINES, max_bytes: int = SLICE_BYTES, *, first: int = 0
) -> Iterator[Cut]:
    """Yield the Slices of a Plan from the record `first` on, in its order, each within both limits.

    A line above max_bytes is a Slice by itself.
    """
    lines = size = model = tokens = 0
    for record in records:
        if lines and (record.model != model or lines == max_lines or size + record.length > max_bytes):
            yield Cut(first=first, lines=lines, bytes=size, model=model, tokens=tokens)
            first, lines, size, tokens = first + lines, 0, 0, 0
        lines, size, model, tokens = lines + 1, size + record.length, record.model, tokens + record.tokens
    if lines:
        yield Cut(first=first, lines=lines, bytes=size, model=model, tokens=tokens)
