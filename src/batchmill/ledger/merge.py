"""Reads a closed batch's Results back, Slice by Slice, in the order of the Plan."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from batchmill.blobs.blobs import BlobMissing, Blobs
from batchmill.ledger.segment import DamagedSegment, Result, unpack_results
from batchmill.schedule.plan import RECORD_BYTES, unpack
from batchmill.spec.results import result_id, unanswered
from batchmill.store.batch import Batch
from batchmill.store.slice import Segment, Slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What an open line of a closing batch becomes: a line of the error file with this code and message."""

    code: str
    message: str


def merge_results(
    *, blobs: Blobs, batch: Batch, slices: Sequence[Slice], segments: Sequence[Segment], rest: Rest | None
) -> Iterator[Result]:
    """Yield one Result for each line of the batch, in input order; one Slice's worth is in memory at a time.

    `slices` and `segments` are in the order of the Plan. The Plan is in the file's own order (today always: lines are
    not re-ordered yet), so the Plan's order is the input's.

    Raises:
        DamagedSegment: a line has two Results, or none although it is done or the batch has no `rest`.
        BlobMissing: the bytes of a Segment, of the Plan or of the input are gone.
    """
    by_slice = {ordinal: tuple(group) for ordinal, group in groupby(segments, key=attrgetter("slice"))}
    for held in slices:
        found = _results_of_slice(blobs=blobs, held=held, segments=by_slice.get(held.ordinal, ()))
        if len(found) < held.lines:
            if rest is None:
                raise DamagedSegment(
                    f"{batch.id}: {held.lines - len(found)} lines of Slice {held.ordinal} have no Result"
                )
            found |= _rest_of_slice(blobs=blobs, batch=batch, held=held, done=found.keys(), rest=rest)
        yield from (found[index] for index in range(held.lines))


def _results_of_slice(*, blobs: Blobs, held: Slice, segments: Iterable[Segment]) -> dict[int, Result]:
    """Return what was made durable of a Slice: just the lines that its bitmap says are done."""
    found: dict[int, Result] = {}
    for segment in segments:
        data = blobs.read(segment.blob_key, offset=segment.offset, length=segment.bytes)
        for result in unpack_results(data, crc32=segment.crc32):
            if result.index in found:
                raise DamagedSegment(f"{held.batch_id}: line {result.index} of Slice {held.ordinal} stands twice")
            found[result.index] = result
    done = {index for index in range(held.lines) if held.done[index >> 3] >> (index & 7) & 1}
    if found.keys() != done:
        odd = sorted(found.keys() ^ done)
        raise DamagedSegment(
            f"{held.batch_id}: lines {odd} of Slice {held.ordinal} are done or have a Result, not both"
        )
    return found


def _rest_of_slice(*, blobs: Blobs, batch: Batch, held: Slice, done: Collection[int], rest: Rest) -> dict[int, Result]:
    if batch.plan_key is None or batch.input_key is None:
        raise ValueError(f"{batch.id} has Slices and no Plan or input")
    plan = blobs.read(batch.plan_key, offset=held.first * RECORD_BYTES, length=held.lines * RECORD_BYTES)
    found: dict[int, Result] = {}
    with blobs.open(batch.input_key) as stream:
        for index, record in enumerate(unpack(plan)):
            if index not in done:
                stream.seek(record.offset + record.id_offset)
                custom_id = stream.read(record.id_length)
                if len(custom_id) != record.id_length:
                    raise BlobMissing(f"{batch.input_key}: it ends within line {record.line}")
                text = unanswered(result_id(batch.id, record.line), custom_id, rest.code, rest.message)
                found[index] = Result(index=index, succeeded=False, attempts=0, text=text)
    return found
