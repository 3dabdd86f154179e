"""Reads a closed batch's Results back, Slice by Slice, in the order of the Plan.

A million lines pass here while a client waits for its files: their bytes are copied a Slice at a time, and no object
is made for a line (bench/closing.py has the figures).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from batchmill.blobs.blobs import Blobs
from batchmill.ledger.segment import DamagedSegment, find_results
from batchmill.schedule.plan import RECORD_BYTES, SLICE_BYTES, Record, unpack
from batchmill.spec.results import result_id, unanswered
from batchmill.store.batch import Batch
from batchmill.store.slice import Segment, Slice

_SPAN = 2 * SLICE_BYTES  # of input read at once for the custom_ids of a Slice; beyond, they are read one by one

Text = bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What an open line of a closing batch becomes: a line of the error file with this code and message."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The lines of one Slice in input order, each with its line end: those for the output and for the error file.

    `rest` counts those of the error file that were never answered and have become a `Rest`.
    """

    output: Sequence[Text]
    error: Sequence[Text]
    rest: int


def merge_results(
    *, blobs: Blobs, batch: Batch, slices: Sequence[Slice], segments: Sequence[Segment], rest: Rest | None
) -> Iterator[Merged]:
    """Yield the lines of each Slice, in input order; one Slice's worth is in memory at a time.

    `slices` and `segments` are in the order of the Plan. The Plan is in the file's own order (today always: lines are
    not re-ordered yet), so the Plan's order is the input's.

    Raises:
        DamagedSegment: a line has two Results, or none although it is done or the batch has no `rest`.
        BlobMissing: the bytes of a Segment, of the Plan or of the input are gone.
    """
    by_slice = {ordinal: tuple(group) for ordinal, group in groupby(segments, key=attrgetter("slice"))}
    for held in slices:
        texts, succeeded = _results_of_slice(blobs=blobs, held=held, segments=by_slice.get(held.ordinal, ()))
        holes = [index for index, text in enumerate(texts) if text is None]
        if holes and rest is None:
            raise DamagedSegment(f"{batch.id}: {len(holes)} lines of Slice {held.ordinal} have no Result")
        if holes and rest is not None:
            for index, line in _rest_of_slice(blobs=blobs, batch=batch, held=held, holes=holes, rest=rest):
                texts[index] = line
        yield Merged(
            output=[text for text, ok in zip(texts, succeeded, strict=True) if ok and text is not None],
            error=[text for text, ok in zip(texts, succeeded, strict=True) if not ok and text is not None],
            rest=len(holes),
        )


def _results_of_slice(
    *, blobs: Blobs, held: Slice, segments: Iterable[Segment]
) -> tuple[list[Text | None], Sequence[int]]:
    """Return what was made durable of a Slice, just the lines that its bitmap says are done; and which succeeded."""
    texts: list[Text | None] = [None] * held.lines
    succeeded = bytearray(held.lines)
    beyond: list[int] = []
    for segment in segments:
        data = blobs.read(segment.blob_key, offset=segment.offset, length=segment.bytes)
        view = memoryview(data)
        for index, ok, _, start, end in find_results(data, crc32=segment.crc32):
            if index >= held.lines:
                beyond.append(index)
            elif texts[index] is not None:
                raise DamagedSegment(f"{held.batch_id}: line {index} of Slice {held.ordinal} stands twice")
            else:
                texts[index] = view[start:end]
                succeeded[index] = ok
    done = int.from_bytes(held.done, "little")
    odd = [index for index, text in enumerate(texts) if (text is not None) != (done >> index & 1)] + beyond
    if odd:
        raise DamagedSegment(
            f"{held.batch_id}: lines {odd} of Slice {held.ordinal} are done or have a Result, not both"
        )
    return texts, succeeded


def _rest_of_slice(
    *, blobs: Blobs, batch: Batch, held: Slice, holes: Sequence[int], rest: Rest
) -> Iterator[tuple[int, bytes]]:
    """Yield the index and the line of each hole."""
    if batch.plan_key is None or batch.input_key is None:
        raise ValueError(f"{batch.id} has Slices and no Plan or input")
    plan = blobs.read(batch.plan_key, offset=held.first * RECORD_BYTES, length=held.lines * RECORD_BYTES)
    every = tuple(unpack(plan))
    records = {index: every[index] for index in holes}
    for index, custom_id in _custom_ids(blobs, batch.input_key, records):
        line = result_id(batch.id, records[index].line)
        yield index, unanswered(line, custom_id, rest.code, rest.message)


def _custom_ids(blobs: Blobs, key: str, records: Mapping[int, Record]) -> Iterator[tuple[int, bytes]]:
    """Yield the raw custom_id of each record; the input between the first and the last is read in one go."""
    begin = min(record.offset for record in records.values())
    end = max(record.offset + record.id_offset + record.id_length for record in records.values())
    if end - begin <= _SPAN:
        data = blobs.read(key, offset=begin, length=end - begin)
        for index, record in records.items():
            start = record.offset - begin + record.id_offset
            yield index, data[start : start + record.id_length]
    else:
        for index, record in records.items():
            yield index, blobs.read(key, offset=record.offset + record.id_offset, length=record.id_length)
