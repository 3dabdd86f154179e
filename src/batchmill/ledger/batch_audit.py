"""Checks one batch: its way through the states, its Slices and Segments, and the lines of its result files."""

import struct
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby
from operator import attrgetter
from typing import BinaryIO

import msgspec

from batchmill.blobs.blobs import BlobMissing, Blobs
from batchmill.ledger.finding import Finding, Kind, Tally
from batchmill.ledger.order import DamagedOrder, read_order
from batchmill.ledger.segment import DamagedSegment, Result, unpack_results
from batchmill.schedule.plan import RECORD_BYTES
from batchmill.spec.limits import OPEN
from batchmill.spec.lines import read_lines, split_envelope
from batchmill.spec.results import result_id
from batchmill.spec.states import FINAL, STAMP, TRANSITIONS, Status
from batchmill.store.audit import BatchRows
from batchmill.store.batch import TRIES
from batchmill.store.slice import Segment, Slice

_UNREADABLE = (BlobMissing, OSError, DamagedSegment, struct.error)
_NO_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_AT_ONCE = 1 << 14  # records of an order
_DIGEST = 16  # as for repeated custom_ids of an input

Say = Callable[[Kind, str], Finding]


def check_batch(rows: BatchRows, blobs: Blobs, tally: Tally) -> Iterator[Finding]:
    """Yield what is wrong with a batch; blocking."""
    batch_id = rows.batch.id

    def say(kind: Kind, detail: str) -> Finding:
        return Finding(kind=kind, what=batch_id, detail=detail)

    if rows.batch.crashes >= TRIES and rows.batch.object.status not in FINAL:
        yield say(Kind.STUCK, f"{rows.batch.object.status} failed {rows.batch.crashes} times in a row.")
    yield from _check_state(rows, say)
    yield from _check_slices(rows, say)
    yield from _check_segments(rows, blobs, tally, say)
    wrong = list(_check_files(rows, blobs, tally, say))
    yield from wrong or _check_order(rows, blobs, say)  # with other files it leads elsewhere anyhow


def _ways() -> Mapping[Status, frozenset[frozenset[str]]]:
    """Return for each status the sets of timestamps that the ways to it leave behind."""
    ways: dict[Status, set[frozenset[str]]] = {status: set() for status in Status}

    def go(status: Status, stamps: frozenset[str]) -> None:
        ways[status].add(stamps)
        for target in TRANSITIONS[status].values():
            if target is not status:
                go(target, stamps | {STAMP[target]})

    go(Status.VALIDATING, frozenset({STAMP[Status.VALIDATING]}))
    return {status: frozenset(sets) for status, sets in ways.items()}


_WAYS = _ways()


def _check_state(rows: BatchRows, say: Say) -> Iterator[Finding]:
    """The timestamps are those of a way to the status, whatever they say; a final batch has its counts and Files."""
    facts, counts = rows.batch.object, rows.batch.object.counts
    stamps = frozenset(name for name in STAMP.values() if getattr(facts, name) is not None)
    if stamps not in _WAYS[facts.status]:
        yield say(Kind.STATE, f"it is {facts.status}, and no way there leaves {', '.join(sorted(stamps))}.")
    if (facts.status is Status.FAILED) != (facts.errors is not None):
        yield say(Kind.STATE, f"it is {facts.status} and has {'no ' if facts.errors is None else ''}errors.")
    if facts.status not in FINAL:
        return
    if facts.status is not Status.FAILED and counts.completed + counts.failed != counts.total:
        detail = f"it is {facts.status} with {counts.completed} + {counts.failed} of {counts.total} lines."
        yield say(Kind.COUNTS, detail)
    for kind, (count, file_id) in _result_files(rows).items():
        if (count == 0) != (file_id is None):
            yield say(Kind.COUNTS, f"it has {count} lines for its {kind} file, which is {file_id}.")


def _check_slices(rows: BatchRows, say: Say) -> Iterator[Finding]:
    """The Slices cover the Plan to its end, each record once; the open ones are as many as the batch says.

    A final batch may have lost the first of them, or all: the Sweeper clears them in portions.
    """
    facts, total = rows.batch.object, rows.batch.object.counts.total
    final = facts.status in FINAL
    if not rows.slices:
        if total and not final:
            yield say(Kind.SLICES, f"it is {facts.status} with {total} lines and has no Slices.")
        return
    ordinal, first = (rows.slices[0].ordinal, rows.slices[0].first) if final else (0, 0)
    for place, held in enumerate(rows.slices, ordinal):
        if (held.ordinal, held.first) != (place, first):
            at = f"record {held.first}, not as number {place} at {first}"
            yield say(Kind.SLICES, f"Slice {held.ordinal} begins at {at}.")
            return
        first += held.lines
        if held.ordinal not in rows.open and _done(held) != frozenset(range(held.lines)):
            yield say(Kind.SLICES, f"Slice {held.ordinal} is closed, and not all of its lines are done.")
    if first != total or rows.plan_bytes != total * RECORD_BYTES:
        yield say(Kind.SLICES, f"of {total} lines, Slices cover {first}, and the Plan has {rows.plan_bytes} bytes.")
    if not final and len(rows.open) != rows.open_slices:
        yield say(Kind.COUNTS, f"{len(rows.open)} Slices are open, and it says {rows.open_slices}.")


def _check_segments(rows: BatchRows, blobs: Blobs, tally: Tally, say: Say) -> Iterator[Finding]:
    """Every Result can be read back, stands once, and in a line that is done; a batch's counts are its Results."""
    by_slice = {ordinal: list(group) for ordinal, group in groupby(rows.segments, key=attrgetter("slice"))}
    wrong: list[str] = []
    completed = failed = 0
    for held in rows.slices:
        found: dict[int, bool] = {}
        for segment in by_slice.pop(held.ordinal, []):
            try:
                for result in _results(blobs, segment, held):
                    if result.index in found:
                        wrong.append(f"line {result.index} of Slice {held.ordinal} stands twice.")
                    found[result.index] = result.succeeded
            except _UNREADABLE as fault:
                wrong.append(f"Segment {segment.seq} of Slice {held.ordinal} in {segment.blob_key}: {fault}.")
        odd = found.keys() ^ _done(held)
        if odd:
            wrong.append(f"lines {_some(odd)} of Slice {held.ordinal} are done or have a Result, not both.")
        completed, failed = completed + sum(found.values()), failed + len(found) - sum(found.values())
    tally.lines += completed + failed
    wrong += [f"there are Segments of Slice {ordinal}, which is not there." for ordinal in by_slice]
    yield from (say(Kind.SEGMENT, detail) for detail in wrong)
    counts = rows.batch.object.counts
    running = (
        rows.slices and rows.batch.object.status not in FINAL
    )  # the last move counts the lines never answered, too
    if running and (completed, failed) != (counts.completed, counts.failed):
        said = f"{counts.completed} lines completed and {counts.failed} failed"
        yield say(Kind.COUNTS, f"it says {said}; its Results are {completed} and {failed}.")


def _results(blobs: Blobs, segment: Segment, held: Slice) -> list[Result]:
    """Return a Segment's Results; the same faults as when it is read in earnest."""
    data = blobs.read(segment.blob_key, offset=segment.offset, length=segment.bytes)
    results = list(unpack_results(data, crc32=segment.crc32))
    if len(results) != segment.lines:
        raise DamagedSegment(f"{len(results)} Results, and its row says {segment.lines}")
    for result in results:
        if result.index >= held.lines or not result.text.endswith(b"\n"):
            raise DamagedSegment(f"the Result of line {result.index} is cut off or outside of its Slice")
    return results


def _done(held: Slice) -> frozenset[int]:
    return frozenset(i for i in range(len(held.done) * 8) if held.done[i >> 3] >> (i & 7) & 1)


def _some(numbers: set[int]) -> str:
    first = sorted(numbers)[:10]
    return ", ".join(map(str, first)) + (" …" if len(numbers) > len(first) else "")


def _result_files(rows: BatchRows) -> Mapping[str, tuple[int, str | None]]:
    """Return for each kind of result file how many lines it must have, and its id."""
    facts = rows.batch.object
    return {
        "output": (facts.counts.completed, facts.output_file_id),
        "error": (facts.counts.failed, facts.error_file_id),
    }


class _Wrong(Exception):  # noqa: N818 - it states what is so
    """A result file is not what it should be; the first thing ends the look at the batch's files."""


class _Line(msgspec.Struct, gc=False):
    """A line of a result file; whatever a backend said in it is passed over, as JSON."""

    id: str
    custom_id: msgspec.Raw
    response: msgspec.Raw
    error: msgspec.Raw


_LINE = msgspec.json.Decoder(_Line)


@dataclass(slots=True)
class _ResultFile:
    """One result file, read line by line; `head` is the line that it stands at, null at the end."""

    name: str
    stream: BinaryIO
    number: int = 0
    head: _Line | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Stand at the first line."""
        self.advance()

    def advance(self) -> None:
        """Go on to the next line."""
        text = self.stream.readline()
        self.head = None
        if text:
            self.number += 1
            try:
                text.decode()
                self.head = _LINE.decode(text)
            except _NO_JSON as fault:
                raise _Wrong(f"line {self.number} of {self.name} is no result line: {fault}.") from fault
            if not text.endswith(b"\n"):
                raise _Wrong(f"line {self.number} of {self.name} is cut off.")


def _check_files(rows: BatchRows, blobs: Blobs, tally: Tally, say: Say) -> Iterator[Finding]:
    """The result files of a final batch hold one line per Request, in the input's order, as many as are counted."""
    if rows.batch.object.status not in FINAL or not rows.files:
        return
    try:
        with ExitStack() as stack:
            files = {
                kind: _ResultFile(f"the {kind} file", stack.enter_context(blobs.open(file.blob_key)))
                for kind, file in rows.files.items()
            }
            if rows.input_key is None:
                _check_alone(list(files.values()))
            else:
                source = stack.enter_context(blobs.open(rows.input_key))
                _check_against(rows, source, list(files.values()))
            for kind, (count, _) in _result_files(rows).items():
                if kind in files and files[kind].number != count:
                    raise _Wrong(f"the {kind} file has {files[kind].number} lines, and it says {count}.")  # noqa: TRY301
            tally.lines += sum(file.number for file in files.values())
    except (_Wrong, BlobMissing, OSError) as fault:
        yield say(Kind.LINES, str(fault))


def _check_order(rows: BatchRows, blobs: Blobs, say: Say) -> Iterator[Finding]:
    """The order of a final batch leads to each line of both result files once: laid side by side they fill the file."""
    key, counts = rows.batch.order_key, rows.batch.object.counts
    if key is None:
        return
    begins, ends = (array("Q"), array("Q")), (array("Q"), array("Q"))
    lines = counts.completed + counts.failed
    try:
        for first in range(0, lines, _AT_ONCE):
            for place in read_order(blobs, key, lines=lines, first=first, count=_AT_ONCE):
                begins[place.failed].append(place.offset)
                ends[place.failed].append(place.offset + place.length)
    except (DamagedOrder, BlobMissing, OSError) as fault:
        yield say(Kind.LINES, f"its order cannot be read: {fault}.")
        return
    for failed, (kind, (count, _)) in enumerate(_result_files(rows).items()):
        file, starts, stops = rows.files.get(kind), sorted(begins[failed]), sorted(ends[failed])
        size = stops[-1] if file is None and stops else 0 if file is None else file.object.bytes
        if len(starts) != count or [*starts, size] != [0, *stops]:
            yield say(Kind.LINES, f"its order leads to other lines than those of its {kind} file.")


def _check_against(rows: BatchRows, source: BinaryIO, files: list[_ResultFile]) -> None:
    """Walk through the input and the result files together: the next line of one of them is that of the input.

    A Result's id says of which batch and line it is. A result file that its owner has deleted may hold what is missing.
    """
    missing = 0
    absent = sum(c for kind, (c, file_id) in _result_files(rows).items() if file_id and kind not in rows.files)
    for raw in read_lines(source.readline, OPEN.max_line_bytes):
        wanted = result_id(rows.batch.id, raw.number)
        holder = next((file for file in files if file.head is not None and file.head.id == wanted), None)
        if holder is None or holder.head is None:
            missing += 1
            if missing > absent:
                raise _Wrong(f"line {raw.number} of the input has no line in a result file, or one out of order.")
            continue
        try:
            custom_id = split_envelope(raw.text).custom_id
        except _NO_JSON as fault:
            raise _Wrong(f"line {raw.number} of the input is no request: {fault}.") from fault
        if bytes(holder.head.custom_id) != custom_id:
            raise _Wrong(
                f"line {holder.number} of {holder.name} has another custom_id than line {raw.number} of the input."
            )
        holder.advance()
    for file in files:
        if file.head is not None:
            raise _Wrong(f"line {file.number} of {file.name} is doubled, out of order, or of no line of the input.")


def _check_alone(files: list[_ResultFile]) -> None:
    """Without the input: no custom_id and no Result's id stands twice."""
    seen: set[bytes] = set()
    for file in files:
        while file.head is not None:
            digests = {_digest(bytes(file.head.custom_id)), _digest(file.head.id.encode())}
            if not seen.isdisjoint(digests):
                raise _Wrong(f"line {file.number} of {file.name} stands twice.")
            seen |= digests
            file.advance()


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=_DIGEST).digest()
