"""Reads a closed batch's Results back in the order of the input, whatever the order of the Plan.

A million lines pass here while a client waits for its files: their bytes are copied in bulk, and next to no object is
made for a line (bench/closing.py has the figures). Where the Plan is in the file's own order, Slices are read one at a
time. Slices whose lines interleave are a group, at most a piece of the Plan: its Results are laid into scratch as they
come, and picked from there line by line. With each line comes its rank: its place in the order in which the Results
were made durable (`ledger/order.py`).
"""

import mmap
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, count, groupby, islice
from operator import not_
from typing import BinaryIO, Protocol

from batchmill.blobs.blobs import Blobs
from batchmill.ledger.order import first_ranks
from batchmill.ledger.segment import DamagedSegment, find_results
from batchmill.schedule.plan import RECORD_BYTES, line_numbers, record_at
from batchmill.spec.results import result_id, unanswered
from batchmill.store.batch import Batch
from batchmill.store.slice import Segment, Slice

_BLOCK = 256  # lines handed out at once
_SLICES = 256  # of which the Plan is read at once, to see which interleave
_IN_MEMORY = 16 << 20
_IN_SCRATCH = 1 << 30

Text = bytes | memoryview
Ranked = tuple[Segment, int]  # and the rank of its first Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What an open line of a closing batch becomes: a line of the error file with this code and message."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Some lines in input order, each with its line end; which succeeded, for the output file; and the rank of each.

    `rest` are those that were never answered and have become a `Rest`: they rank last, in input order.
    """

    texts: Sequence[Text]
    succeeded: Sequence[int]
    ranks: Sequence[int]
    rest: Sequence[bytes]

    @property
    def output(self) -> list[Text]:
        """The lines for the output file."""
        return list(compress(self.texts, self.succeeded))

    @property
    def error(self) -> list[Text]:
        """The lines for the error file."""
        return list(compress(self.texts, map(not_, self.succeeded)))


class _Texts(Protocol):
    """What was made durable of a group, by place: of a line in the group, in the Plan's order."""

    def __getitem__(self, place: int) -> Text | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Slices side by side in the Plan whose lines are all before or behind all others in the input."""

    slices: Sequence[Slice]
    segments: Sequence[Sequence[Ranked]]  # of each Slice
    plan: bytes
    order: Sequence[int]  # its places in the order of the input

    @property
    def lines(self) -> int:
        """How many it holds."""
        return len(self.plan) // RECORD_BYTES

    @property
    def bytes(self) -> int:
        """Those of its Results."""
        return sum(segment.bytes for segments in self.segments for segment, _ in segments)


def merge_results(
    *,
    blobs: Blobs,
    batch: Batch,
    slices: Sequence[Slice],
    segments: Sequence[Segment],
    rest: Rest | None,
    in_memory: int = _IN_MEMORY,
    in_scratch: int = _IN_SCRATCH,
) -> Iterator[Merged]:
    """Yield the lines in the order of the input, some hundred at once.

    Args:
        blobs: Where the bytes are.
        batch: The batch.
        slices: Its Slices, in the order of the Plan.
        segments: Their Segments, in the same order.
        rest: What open lines become; None if there may be none.
        in_memory: Bytes of Results of a group that need no scratch; a Slice alone never does.
        in_scratch: Bytes of scratch, about: a group with more Results is read several times.

    Raises:
        DamagedSegment: a line has two Results, or none although it is done or the batch has no `rest`.
        BlobMissing: the bytes of a Segment, of the Plan or of the input are gone.
        OSError: there is no room for scratch.
    """
    closed = _Closed(blobs=blobs, batch=batch, rest=rest, last=count(sum(segment.lines for segment in segments)))
    for group in _groups(blobs=blobs, batch=batch, slices=slices, segments=segments):
        if len(group.slices) == 1 or group.bytes <= in_memory:
            texts, facts = _in_memory(blobs, group)
            yield from closed.lines(group, group.order, texts, facts)
        else:
            share = len(group.order) // (1 + group.bytes // in_scratch) + 1
            for start in range(0, len(group.order), share):
                wanted = group.order[start : start + share]
                with blobs.scratch() as scratch:
                    found = _Scattered(blobs=blobs, group=group, wanted=wanted, scratch=scratch)
                    yield from closed.lines(group, wanted, found, found.facts)
                    found.close()


def _groups(*, blobs: Blobs, batch: Batch, slices: Sequence[Slice], segments: Sequence[Segment]) -> Iterator[_Group]:
    if slices and batch.plan_key is None:
        raise ValueError(f"{batch.id} has Slices and no Plan")
    key = str(batch.plan_key)

    def plan(of: Sequence[Slice]) -> bytes:
        lines = sum(held.lines for held in of)
        return blobs.read(key, offset=of[0].first * RECORD_BYTES, length=lines * RECORD_BYTES)

    ranked = zip(segments, first_ranks(segments), strict=True)
    by_slice = {ordinal: tuple(group) for ordinal, group in groupby(ranked, key=lambda each: each[0].slice)}
    spans: list[tuple[int, int]] = []
    for start in range(0, len(slices), _SLICES):
        some = slices[start : start + _SLICES]
        numbers = iter(line_numbers(plan(some)))
        spans += ((min(of_slice), max(of_slice)) for of_slice in (list(islice(numbers, s.lines)) for s in some))
    highest = accumulate((high for _, high in spans), max)
    lowest_behind = list(accumulate((low for low, _ in reversed(spans)), min))[-2::-1]
    begun = 0
    for at, high in enumerate(highest):
        if at == len(slices) - 1 or high < lowest_behind[at]:
            of = slices[begun : at + 1]
            begun = at + 1
            records = plan(of)
            places = line_numbers(records)
            yield _Group(
                slices=of,
                segments=[by_slice.get(held.ordinal, ()) for held in of],
                plan=records,
                order=array("I", sorted(range(len(places)), key=places.__getitem__)),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Closed:
    """A batch that nothing more is run of, and what becomes of its open lines."""

    blobs: Blobs
    batch: Batch
    rest: Rest | None
    last: Iterator[int]  # the ranks of lines that were never answered

    def lines(self, group: _Group, order: Sequence[int], texts: _Texts, facts: "_Facts") -> Iterator[Merged]:
        """Yield the lines at these places of a group."""
        for start in range(0, len(order), _BLOCK):
            places = order[start : start + _BLOCK]
            first, end = places[0], places[0] + len(places)
            if isinstance(texts, list) and places == array("I", range(first, end)):  # side by side: mostly they are
                found, ranks, succeeded = texts[first:end], facts.ranks[first:end], facts.succeeded[first:end]
            else:
                found = [texts[place] for place in places]
                ranks = array("I", [facts.ranks[place] for place in places])
                succeeded = bytearray(facts.succeeded[place] for place in places)
            holes = [] if all(found) else [at for at, text in enumerate(found) if not text]
            rest = list(self._rest_of(group, [places[at] for at in holes])) if holes else []
            for at, line in zip(holes, rest, strict=True):
                found[at], ranks[at] = line, next(self.last)
            yield Merged(texts=found, succeeded=succeeded, ranks=ranks, rest=rest)

    def _rest_of(self, group: _Group, holes: Sequence[int]) -> Iterator[bytes]:
        """Yield the line of each hole, with the custom_id that stands in the input."""
        if self.rest is None:
            raise DamagedSegment(f"{self.batch.id}: {len(holes)} lines have no Result")
        if self.batch.input_key is None:
            raise ValueError(f"{self.batch.id} has Slices and no input")
        records = [record_at(group.plan, place) for place in holes]
        spans = [(record.offset + record.id_offset, record.id_length) for record in records]
        for record, custom_id in zip(records, self.blobs.read_spans(self.batch.input_key, spans), strict=True):
            yield unanswered(result_id(self.batch.id, record.line), custom_id, self.rest.code, self.rest.message)


class _Facts:
    """Of lines side by side in the Plan, by place: which have a Result that succeeded, and the ranks of the Results."""

    def __init__(self, lines: int) -> None:
        self.succeeded = bytearray(lines)
        self.ranks = array("I", bytes(4 * lines))


def _in_memory(blobs: Blobs, group: _Group) -> tuple[list[Text | None], _Facts]:
    texts: list[Text | None] = []
    facts = _Facts(group.lines)
    for held, segments in zip(group.slices, group.segments, strict=True):
        texts += _results_of_slice(blobs=blobs, held=held, segments=segments, facts=facts, first=len(texts))
    return texts, facts


class _Scattered:
    """Results of a group by place, those `wanted` of them; their bytes are in scratch."""

    def __init__(self, *, blobs: Blobs, group: _Group, wanted: Sequence[int], scratch: BinaryIO) -> None:
        lines = group.lines
        self.facts = _Facts(lines)
        self._start = array("Q", bytes(8 * lines))
        self._end = array("Q", bytes(8 * lines))
        is_wanted = bytearray(lines)
        for place in wanted:
            is_wanted[place] = True
        end = first = 0
        for held, segments in zip(group.slices, group.segments, strict=True):
            texts = _results_of_slice(blobs=blobs, held=held, segments=segments, facts=self.facts, first=first)
            for place, text in enumerate(texts, start=first):
                if text is not None and is_wanted[place]:
                    scratch.write(text)
                    self._start[place], self._end[place] = end, end + len(text)
                    end += len(text)
            first += held.lines
        scratch.flush()
        # Not read(): that is a system call a line. Views of it would have to be gone before it is closed: copies.
        self._mapped = mmap.mmap(scratch.fileno(), end, access=mmap.ACCESS_READ) if end else b""

    def close(self) -> None:
        """Let go of the scratch: a mapping keeps it on the disk."""
        if isinstance(self._mapped, mmap.mmap):
            self._mapped.close()

    def __getitem__(self, place: int) -> bytes | None:
        """Return the line at a place; None if it has no Result."""
        return self._mapped[self._start[place] : self._end[place]] or None


def _results_of_slice(
    *, blobs: Blobs, held: Slice, segments: Iterable[Ranked], facts: _Facts, first: int
) -> list[Text | None]:
    """Return what was made durable of a Slice, just the lines that its bitmap says are done.

    What else is known of them goes into `facts`, from the place `first` on.
    """
    texts: list[Text | None] = [None] * held.lines
    succeeded, ranks = facts.succeeded, facts.ranks
    beyond: list[int] = []
    for segment, first_rank in segments:
        data = blobs.read(segment.blob_key, offset=segment.offset, length=segment.bytes)
        view = memoryview(data)
        found = find_results(data, crc32=segment.crc32)
        if len(found) != segment.lines:
            raise DamagedSegment(f"{held.batch_id}: {len(found)} Results in a Segment of {segment.lines}")
        for rank, (index, ok, _, start, end) in enumerate(found, first_rank):
            if index >= held.lines:
                beyond.append(index)
            elif texts[index] is not None:
                raise DamagedSegment(f"{held.batch_id}: line {index} of Slice {held.ordinal} stands twice")
            else:
                texts[index] = view[start:end]
                succeeded[first + index] = ok
                ranks[first + index] = rank
    done = int.from_bytes(held.done, "little")
    if all(texts) and done == (1 << held.lines) - 1 and not beyond:
        return texts
    odd = [index for index, text in enumerate(texts) if (text is not None) != (done >> index & 1)] + beyond
    if odd:
        raise DamagedSegment(
            f"{held.batch_id}: lines {odd} of Slice {held.ordinal} are done or have a Result, not both"
        )
    return texts
