"""Seals batches: fences what is open, writes the result files in input order, moves the batch to its end."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import structlog
from sqlalchemy import ColumnElement

from batchmill.blobs.blobs import Blobs, BlobWriter, Written
from batchmill.blobs.space import Room
from batchmill.clock import Clock
from batchmill.engine.attempt import Attempts
from batchmill.ledger.merge import Merged, Rest, Text, merge_results
from batchmill.ledger.order import IN_MEMORY, Order
from batchmill.ledger.sums import by_cause, causes_of
from batchmill.spec.ids import mint_id
from batchmill.spec.objects import FileObject
from batchmill.spec.progress import GROUPS_KEPT, IDS_KEPT, Errors
from batchmill.spec.states import Event, Status
from batchmill.spec.usage import Used, day_of
from batchmill.store.batch import Batch, advance, claim_batch, has_batch, holds_batch, is_settled, release_batch
from batchmill.store.blob import doom_blob, insert_writing, publish_blob
from batchmill.store.database import Database, Transaction
from batchmill.store.file import File, insert_file
from batchmill.store.progress import add_errors
from batchmill.store.slice import Segment, Slice, fence_slices, list_segments, list_slices
from batchmill.store.usage import Whose, count_usage
from batchmill.telemetry import UNTRACED, Traces

_GRACE_SECONDS = 30  # runners have so long to let open calls end; then their Slices are taken
_ONE_GO = 4 << 20  # bytes
_CLOSING = (Status.FINALIZING, Status.CANCELLING)
_RESTS = {
    Status.FINALIZING: Rest(code="batch_expired", message="Not run before the completion window closed."),
    Status.CANCELLING: Rest(code="batch_cancelled", message="Not run because the batch was cancelled."),
}
_KINDS = {
    True: "output",
    False: "error",
}  # a Result that succeeded goes to the output file, any other to the error file


@dataclass(frozen=True, slots=True, kw_only=True)
class _Closing:
    """A batch in this Finalizer's hands, and all that its runners made durable."""

    batch: Batch
    slices: Sequence[Slice]
    segments: Sequence[Segment]


@dataclass(slots=True, kw_only=True)
class _ResultFile:
    """One of the two result files on its way; `written` once it is durable."""

    key: str
    writer: BlobWriter
    lines: int = 0
    written: Written | None = None

    def take(self, texts: Sequence[Text], size: int) -> None:
        """Write lines of so many bytes: in one go, unless they are so large that a copy of them all would be felt."""
        self.lines += len(texts)
        if size <= _ONE_GO:
            self.writer.write(b"".join(texts))
        else:
            for text in texts:
                self.writer.write(text)


@dataclass(slots=True, kw_only=True)
class _Files:
    """What a closing batch's Results are written to; `order` is that in which they came, once it is durable."""

    results: Mapping[bool, _ResultFile]
    order: Written | None = None

    def take(self, merged: Merged, order: Order) -> None:
        """Write some lines, and note where they are."""
        lengths = list(map(len, merged.texts))
        output, size = merged.output, sum(lengths)
        self.results[True].take(output, size)
        if len(output) < len(lengths):
            self.results[False].take(merged.error, size)
        order.add(lengths=lengths, succeeded=merged.succeeded, ranks=merged.ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unanswered:
    """The lines that were never answered, the first of them, and all by their models."""

    count: int
    first: Sequence[bytes]
    used: Mapping[Whose, Used]

    def errors(self) -> list[Errors]:
        """Return them as the one group that they are."""
        return [replace(errors, count=self.count) for errors in by_cause(causes_of(self.first))]


class Finalizer:
    """Moves batches out of `finalizing` and `cancelling`.

    A result file lasts as long as its batch says, else `retention` seconds, else for ever.
    """

    def __init__(
        self,
        *,
        database: Database,
        blobs: Blobs,
        room: Room,
        clock: Clock,
        worker_id: str,
        lease: float,
        retention: int | None = None,
        traces: Traces = UNTRACED,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._worker_id = worker_id
        self._lease = lease
        self._retention = retention
        self._attempts = Attempts(doing="finalizing", database=database, room=room, clock=clock, traces=traces)
        self._log = structlog.get_logger("finalizer")

    async def step(self) -> bool:
        """Seal the oldest closing batch whose runners have let go of it, if there is one."""
        batch = await self._attempts.begin(waits=self._waits, claim=self._claim)
        if batch is None:
            return False
        async with self._attempts.over(batch, keys=_keys(batch)):
            await self._close(batch)
        return True

    def _waits(self, tx: Transaction) -> bool:
        return has_batch(tx, statuses=_CLOSING, ready=self._settled(tx))

    def _settled(self, tx: Transaction) -> ColumnElement[bool]:
        return is_settled(tx, now=int(self._clock.now()), grace=_GRACE_SECONDS)

    def _claim(self, tx: Transaction) -> Batch | None:
        """Take a settled batch and announce its two files, and the order of their lines."""
        batch = claim_batch(
            tx, worker_id=self._worker_id, statuses=_CLOSING, lease=self._lease, ready=self._settled(tx)
        )
        if batch is not None:
            for key in _keys(batch):
                insert_writing(tx, key=key, organisation_id=batch.organisation_id, now=int(self._clock.now()))
        return batch

    async def _close(self, batch: Batch) -> None:
        closing = await self._fence(batch)
        files, unanswered = await asyncio.to_thread(self._write_files, closing)
        sealed = await self._database.write(lambda tx: self._seal(tx, batch, files, unanswered))
        counts = {f"{_KINDS[kind]}_lines": file.lines for kind, file in files.results.items()}
        self._log.info("sealed" if sealed else "not sealed: someone was faster", batch=batch.id, **counts)

    async def _fence(self, batch: Batch) -> _Closing:
        """Take the batch's Slices, so that no commit of a runner can slip in any more; then read what is there.

        Not in the claim's transaction: a group commit locks its Slices first and the batch last, this would not. A
        claim that was lost in between fences nobody, and its seal will fail.
        """

        def take(tx: Transaction) -> None:
            if holds_batch(tx, batch_id=batch.id, epoch=batch.epoch):
                fence_slices(tx, batch_id=batch.id)

        def look(tx: Transaction) -> _Closing:
            return _Closing(
                batch=batch, slices=list_slices(tx, batch_id=batch.id), segments=list_segments(tx, batch_id=batch.id)
            )

        await self._database.write(take)
        return await self._database.read(look)

    def _write_files(self, closing: _Closing) -> tuple[_Files, _Unanswered]:
        """Stream the Results into the two files, and write down in which order they came.

        Returns these, and which lines were never answered.
        """
        batch = closing.batch
        lines = sum(held.lines for held in closing.slices)
        results: dict[bool, _ResultFile] = {}
        files = _Files(results=results)
        unanswered = _Unanswered(count=0, first=(), used={})
        try:
            for kind in _KINDS:
                results[kind] = _ResultFile(key=_key(batch, kind), writer=self._blobs.writer(_key(batch, kind)))
            with ExitStack() as stack:
                if lines:
                    scratch = stack.enter_context(self._blobs.scratch()) if lines > IN_MEMORY else None
                    order = Order(scratch=scratch, lines=lines)
                    stack.callback(order.close)
                    unanswered = self._merge(closing, files, order)
                    files.order = self._write_order(batch, order)
            for file in results.values():
                if file.lines:
                    file.written = file.writer.finish()
        finally:
            for file in results.values():
                file.writer.discard()
        return files, unanswered

    def _merge(self, closing: _Closing, files: _Files, order: Order) -> _Unanswered:
        count, first = 0, list[bytes]()
        for merged in merge_results(
            blobs=self._blobs,
            batch=closing.batch,
            slices=closing.slices,
            segments=closing.segments,
            rest=_rest(closing.batch),
        ):
            files.take(merged, order)
            first += merged.rest[: IDS_KEPT - len(first)]
            count += len(merged.rest)
        return _Unanswered(count=count, first=first, used=_holes(closing))

    def _write_order(self, batch: Batch, order: Order) -> Written:
        writer = self._blobs.writer(_order_key(batch))
        try:
            order.write(writer)
            return writer.finish()
        finally:
            writer.discard()

    def _seal(self, tx: Transaction, batch: Batch, files: _Files, unanswered: _Unanswered) -> bool:
        """Publish the Files and make the last move in one transaction, if nobody was faster.

        Lines that were never answered are counted here, as requests that failed: no group commit has.
        """
        now = self._clock.now()
        status = batch.object.status
        late = unanswered.count > 0 and status is Status.FINALIZING
        ids = {kind: mint_id("file", now) if file.written else None for kind, file in files.results.items()}
        moved = advance(
            tx,
            batch_id=batch.id,
            status=status,
            event=Event.SEALED_LATE if late else Event.SEALED,
            now=int(now),
            epoch=batch.epoch,
            values={
                "completed": files.results[True].lines,
                "failed": files.results[False].lines,
                "output_file_id": ids[True],
                "error_file_id": ids[False],
                "order_key": _order_key(batch) if files.order else None,
                "owner": None,
                "lease_until": None,
            },
        )
        if moved:  # one group more than those of lines that were sent: it may be the largest
            errors, owner = unanswered.errors(), batch.organisation_id
            add_errors(tx, batch_id=batch.id, organisation_id=owner, errors=errors, most=GROUPS_KEPT + 1)
        lasts = self._retention if batch.output_expires_after is None else batch.output_expires_after
        for kind, file in files.results.items():
            if moved and file.written is not None:
                publish_blob(tx, key=file.key, size=file.written.bytes, sha256=file.written.sha256)
                added = _file(batch, kind, str(ids[kind]), file, file.written.bytes, now=int(now), lasts=lasts)
                insert_file(tx, added)
            else:
                doom_blob(tx, key=file.key)
        if moved and files.order is not None:
            publish_blob(tx, key=_order_key(batch), size=files.order.bytes, sha256=files.order.sha256)
        else:
            doom_blob(tx, key=_order_key(batch))
        if moved:
            count_usage(tx, unanswered.used, day=day_of(now))
        else:
            release_batch(tx, batch_id=batch.id, epoch=batch.epoch)
        return moved


def _rest(batch: Batch) -> Rest | None:
    """Return what open lines become; None if there may be none: the batch was drained before its window passed."""
    facts = batch.object
    drained_in_time = (
        facts.status is Status.FINALIZING
        and facts.finalizing_at is not None
        and facts.expires_at is not None
        and facts.finalizing_at < facts.expires_at
    )
    return None if drained_in_time else _RESTS[facts.status]


def _holes(closing: _Closing) -> Mapping[Whose, Used]:
    """Return the open lines of a batch's Slices, which are nobody's any more, by their models."""
    holes: Counter[Whose] = Counter()
    for held in closing.slices:
        whose = Whose(held.organisation_id, closing.batch.key_id or "", held.model)
        holes[whose] += held.lines - int.from_bytes(held.done, "little").bit_count()
    return {whose: Used(requests=count, failed=count) for whose, count in holes.items() if count}


def _key(batch: Batch, kind: bool) -> str:
    """Return the key of a result file; it carries the Finalizer's own epoch, so two never write the same."""
    return f"{batch.id}-{batch.epoch}-{_KINDS[kind]}"


def _order_key(batch: Batch) -> str:
    return f"{batch.id}-{batch.epoch}-order"


def _keys(batch: Batch) -> list[str]:
    """Return the keys that finalizing may write to."""
    return [*(_key(batch, kind) for kind in _KINDS), _order_key(batch)]


def _file(batch: Batch, kind: bool, file_id: str, file: _ResultFile, size: int, *, now: int, lasts: int | None) -> File:
    return File(
        organisation_id=batch.organisation_id,
        blob_key=file.key,
        object=FileObject(
            id=file_id,
            bytes=size,
            created_at=now,
            filename=f"{batch.id}_{_KINDS[kind]}.jsonl",
            purpose="batch_output",
            expires_at=None if lasts is None else now + lasts,
        ),
    )
