"""Pages of a batch's Results in the order in which they came: out of its Segments, later out of its result files.

What is committed has a rank that never changes, so a reader goes on across the end of the batch and the clearing of its
Segments. Of a batch that was finalized before orders were kept the Results come in the files' order.
"""

import asyncio
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from batchmill.blobs.blobs import BlobMissing, Blobs
from batchmill.clock import Clock
from batchmill.ledger.order import DamagedOrder, Place, read_order
from batchmill.ledger.segment import find_results
from batchmill.spec.cursor import Position
from batchmill.spec.family import Wanted
from batchmill.spec.states import FINAL
from batchmill.store.batch import Batch, batches_by_id
from batchmill.store.database import Database, Transaction
from batchmill.store.file import File, find_file
from batchmill.store.order import list_ranked
from batchmill.store.slice import Segment

_BYTES = (
    4 << 20
)  # read for a page, whatever is found in them; one Segment or one line may be larger. A client that does
# not read on holds twice as much
_ROWS = 256  # of Segments at once
_MOST_ROWS = 4096
_PLACES = 1 << 14  # looked at for a page with a filter
_BEGIN, _END = b'{"id":"batch_req_', b"\n"  # of each line
_FILES = ("output", "error")

Found = tuple[bool, bytes, Position]  # whether the line failed, the line, and the position behind it
Steps = Generator[Found | Position, None, None]  # a bare position says that nothing before it is wanted


class ResultsGone(Exception):  # noqa: N818 - it states what is so
    """The batch has results that are wanted, and no file of those is there: deleted, or expired."""


class WrongPosition(Exception):  # noqa: N818 - it states what is so
    """The position is in an order that this batch's Results do not have (any more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some Results, each with the position behind it; and where the next page begins.

    `has_more`: there are more now, wanted or not. `complete`: the batch is final, and there is nothing behind.
    """

    results: Sequence[tuple[bytes, Position]]
    next: Position
    has_more: bool
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What the rows say of a batch at a moment: its Segments from a position on, or, when it is final, its Files."""

    batch: Batch
    segments: Sequence[Segment] = ()
    more: bool = False  # Segments than these
    files: tuple[File | None, File | None] = (None, None)  # the output and the error file

    @property
    def is_final(self) -> bool:
        return self.batch.object.status in FINAL

    @property
    def lines(self) -> int:
        counts = self.batch.object.counts
        return counts.completed + counts.failed

    def kinds(self, wanted: Wanted) -> list[bool]:
        """Return whether it failed, of each kind of Results that is wanted and of which there are some."""
        counts = {False: self.batch.object.counts.completed, True: self.batch.object.counts.failed}
        return [failed for failed, count in counts.items() if count and wanted.kind(failed=failed)]


class Pages:
    """Reads the Results of batches, in threads; no transaction is held meanwhile."""

    def __init__(self, *, database: Database, blobs: Blobs, clock: Clock) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock

    async def page(self, *, batch_id: str, start: Position, wanted: Wanted, limit: int) -> Page:
        """Return at most `limit` Results that are wanted, in their order; about 4 MiB are read for them at most.

        Raises:
            ResultsGone: nothing of them is left.
            WrongPosition: `start` is none of this batch's.
            BlobMissing, DamagedSegment, DamagedOrder: the stored bytes are not what the rows say.
        """
        look = await self._look(batch_id, start, wanted, limit)
        while True:
            try:
                return await asyncio.to_thread(self._read, look, start, wanted, limit)
            except BlobMissing:  # cleared or deleted since: then the rows say something else now
                before, look = look, await self._look(batch_id, start, wanted, limit)
                if look == before:
                    raise

    async def _look(self, batch_id: str, start: Position, wanted: Wanted, limit: int) -> _Look:
        now = int(self._clock.now())

        def statements(tx: Transaction) -> _Look:
            batch = batches_by_id(tx, batch_ids=[batch_id])[batch_id]
            if batch.object.status in FINAL:
                return _Look(batch=batch, files=_files(tx, batch, now=now))
            lines = start.rank - start.base + limit if wanted.is_all else None
            segments, more = _segments(tx, batch_id, start, lines)
            return _Look(batch=batch, segments=segments, more=more)

        return await self._database.read(statements)

    def _read(self, look: _Look, start: Position, wanted: Wanted, limit: int) -> Page:
        if not look.is_final:
            if start.file:
                raise WrongPosition
            end = start.base + sum(segment.lines for segment in look.segments)
            page = _page(self._running(look, start), start, wanted, limit)
            return Page(
                results=page.results, next=page.next, has_more=look.more or page.next.rank < end, complete=False
            )
        kinds = look.kinds(wanted)
        if not kinds:
            return Page(results=[], next=start, has_more=False, complete=True)
        if all(look.files[failed] is None for failed in kinds):
            raise ResultsGone
        if look.batch.order_key is None:
            return self._by_file(look, start, wanted, limit)
        if start.file:
            raise WrongPosition
        page = _page(self._by_order(look, look.batch.order_key, start, wanted, limit), start, wanted, limit)
        more = page.next.rank < look.lines
        return Page(results=page.results, next=page.next, has_more=more, complete=not more)

    def _running(self, look: _Look, start: Position) -> Steps:
        """Yield what the Segments hold from a position on; those that lie side by side in a blob are read at once."""
        rank, left = start.base, _BYTES
        for key, group in groupby(look.segments, key=attrgetter("blob_key")):
            some: list[tuple[Segment, int]] = []
            for segment in group:
                if rank + segment.lines > start.rank:
                    if left < min(segment.bytes, _BYTES):
                        yield from self._held(key, some, start.rank)
                        return
                    left -= segment.bytes
                    some.append((segment, rank))
                rank += segment.lines
            yield from self._held(key, some, start.rank)

    def _held(self, key: str, some: Sequence[tuple[Segment, int]], first: int) -> Iterator[Found]:
        datas = self._blobs.read_spans(key, [(segment.offset, segment.bytes) for segment, _ in some]) if some else []
        for (segment, base), data in zip(some, datas, strict=True):
            for rank, (_, succeeded, _, begin, end) in enumerate(find_results(data, crc32=segment.crc32), base):
                if rank >= first:
                    yield not succeeded, data[begin:end], Position(rank + 1, segment.seq, segment.slice, base)

    def _by_order(self, look: _Look, key: str, start: Position, wanted: Wanted, limit: int) -> Steps:
        """Yield what the result files hold, by rank; lines of a File that is gone are passed over."""
        count = limit if wanted.is_all else _PLACES
        places = read_order(self._blobs, key, lines=look.lines, first=start.rank, count=count)
        chosen: list[Place] = []
        ranks: list[int] = []
        left, rank = _BYTES, start.rank
        for rank, place in enumerate(places, start.rank):
            if wanted.kind(failed=place.failed) and look.files[place.failed] is not None:
                if (chosen and left < place.length) or (len(chosen) == limit and not wanted.reads):
                    break
                left -= place.length
                chosen.append(place)
                ranks.append(rank)
        else:
            rank = start.rank + len(places)
        for at, place, text in zip(ranks, chosen, self._texts(look, chosen), strict=True):
            yield place.failed, text, start._replace(rank=at + 1)
        yield start._replace(rank=rank)

    def _texts(self, look: _Look, places: Sequence[Place]) -> list[bytes]:
        texts = [b""] * len(places)
        for failed, file in enumerate(look.files):
            mine = [at for at, place in enumerate(places) if place.failed == bool(failed)]
            if mine and file is not None:
                spans = [(places[at].offset, places[at].length) for at in mine]
                for at, text in zip(mine, self._blobs.read_spans(file.blob_key, spans), strict=True):
                    if not text.startswith(_BEGIN) or text.find(_END) != len(text) - 1:
                        raise DamagedOrder(f"{look.batch.order_key} leads to no line of {file.blob_key}: {places[at]}")
                    texts[at] = text
        return texts

    def _by_file(self, look: _Look, start: Position, wanted: Wanted, limit: int) -> Page:
        """Return a page in the files' order: nobody kept the other."""
        if start.rank and not start.file:
            raise WrongPosition
        begin = _FILES.index(start.file or "output")
        ends = [file.object.bytes if file else 0 for file in look.files]
        page = _page(self._in_files(look, begin, start.rank if start.file else 0, wanted), start, wanted, limit)
        at = _FILES.index(page.next.file or "output")
        offset = page.next.rank if page.next.file else 0
        more = offset < ends[at] or (at == 0 and ends[1] > 0)
        return Page(results=page.results, next=page.next, has_more=more, complete=not more)

    def _in_files(self, look: _Look, begin: int, offset: int, wanted: Wanted) -> Steps:
        left = _BYTES
        for failed in range(begin, len(_FILES)):
            file, name = look.files[failed], _FILES[failed]
            at = offset if failed == begin else 0
            if file is None or not wanted.kind(failed=bool(failed)):
                yield Position(0 if file is None else file.object.bytes, file=name)
                continue
            with self._blobs.open(file.blob_key) as stream:
                stream.seek(max(0, at - 1))
                if at and stream.read(1) != _END:
                    raise WrongPosition
                while left > 0 and (text := stream.readline()):
                    at += len(text)
                    left -= len(text)
                    yield bool(failed), text, Position(at, file=name)
            if left <= 0:
                return


def _page(found: Steps, start: Position, wanted: Wanted, limit: int) -> Page:
    """Return a page of what is found and wanted."""
    results: list[tuple[bytes, Position]] = []
    at = start
    for each in found:
        if isinstance(each, Position):
            at = each
            continue
        failed, text, behind = each
        if wanted.takes(failed=failed, text=text):
            if len(results) == limit:
                break
            results.append((text, behind))
        at = behind
    found.close()  # and what it has open
    return Page(results=results, next=at, has_more=False, complete=False)


def _segments(tx: Transaction, batch_id: str, start: Position, lines: int | None) -> tuple[list[Segment], bool]:
    """Return Segments from a position on that hold so many lines, or bytes enough for a page; and if there are more."""
    found: list[Segment] = []
    held = size = 0
    at, after = (start.seq, start.slice), False
    while len(found) < _MOST_ROWS:
        rows = list_ranked(tx, batch_id=batch_id, seq=at[0], ordinal=at[1], after=after, limit=_ROWS)
        for row in rows:
            if size >= _BYTES or (lines is not None and held >= lines):
                return found, True
            found.append(row)
            held += row.lines
            size += row.bytes if start.base + held > start.rank else 0
        if len(rows) < _ROWS:
            return found, False
        at, after = (rows[-1].seq, rows[-1].slice), True
    return found, True


def _files(tx: Transaction, batch: Batch, *, now: int) -> tuple[File | None, File | None]:
    ids = (batch.object.output_file_id, batch.object.error_file_id)
    output, error = (
        None if i is None else find_file(tx, organisation_id=batch.organisation_id, file_id=i, now=now) for i in ids
    )
    return output, error
