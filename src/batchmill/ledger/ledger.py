"""Claims Slices, makes Results durable in group commits, gives Slices back: where rows and bytes are tied together."""

import asyncio
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import accumulate, chain, compress

import structlog

from batchmill.blobs.blobs import BlobMissing, Blobs, BlobsAway
from batchmill.blobs.space import is_full
from batchmill.clock import Clock
from batchmill.ledger.segment import Result, pack_results
from batchmill.ledger.sums import by_cause, causes_of, retries_of, shares_of
from batchmill.schedule.choose import Candidate, Chooser
from batchmill.schedule.plan import RECORD_BYTES, Record, unpack
from batchmill.spec.groups import Cause
from batchmill.spec.ids import mint_id
from batchmill.spec.objects import Usage
from batchmill.spec.progress import Share
from batchmill.spec.states import Event, Status
from batchmill.spec.usage import Used, day_of, total_tokens, total_used
from batchmill.store.batch import Batch, advance, batches_by_id, hold_back, set_waiting
from batchmill.store.blob import insert_ready
from batchmill.store.database import Database, Transaction
from batchmill.store.progress import add_errors, add_shares
from batchmill.store.receipt import count_models
from batchmill.store.slice import (
    Bitmap,
    Fence,
    Segment,
    Slice,
    claim_slices,
    insert_segments,
    list_candidates,
    mark_alone,
    mark_sent,
    record_done,
    release_slice,
)
from batchmill.store.tally import record_progress
from batchmill.store.usage import Whose, count_usage
from batchmill.telemetry import UNTRACED, Metrics, Traces

_CANDIDATES = 256  # batches looked at for one claim
_NOTHING = Usage()
_ASIDE_SECONDS = 60.0  # a batch whose bytes are missing is left alone for so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A Slice in this worker's hands, the batch it is of, and the Plan's records of its lines."""

    slice: Slice
    batch: Batch
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """What one group commit holds of one Slice: new Results, and the whole bitmap with them in it."""

    slice: Slice
    results: Sequence[Result]
    done: bytes
    closed: bool


class Ledger:
    """The durable account of what was claimed and what became of it."""

    def __init__(
        self,
        *,
        database: Database,
        blobs: Blobs,
        clock: Clock,
        worker_id: str,
        lease: float,
        metrics: Metrics,
        traces: Traces = UNTRACED,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._worker_id = worker_id
        self._lease = lease
        self._metrics = metrics
        self._traces = traces
        self._chooser = Chooser()
        self._log = structlog.get_logger("ledger")

    async def claim(
        self, *, slices: int, models: Collection[str], besides: Collection[str] = (), rate: float | None = None
    ) -> list[Claim]:
        """Claim at most so many Slices for these models, shared fairly between organisations and batches.

        With `besides`, the batches already in hand: one Slice of each other batch. `rate` as in `Chooser`.
        Raises `BlobsAway` where the Plan cannot be read now; nothing is claimed then.
        """

        def candidates(tx: Transaction) -> Sequence[Candidate]:
            found = list_candidates(tx, models=models, worker_id=self._worker_id, limit=_CANDIDATES)
            others = [replace(c, open_slices=1) for c in found if c.batch_id not in besides]
            return others if besides else found

        def statements(tx: Transaction) -> tuple[list[tuple[Slice, bool, Batch]], Chooser]:
            chooser = copy(self._chooser)  # only what is committed was had
            turns = chooser.choose(candidates(tx), slices, now=self._clock.now(), rate=rate)
            batches = batches_by_id(tx, batch_ids=sorted(set(turns)))
            taken = [
                claim_slices(tx, batch_id=b, count=n, models=models, worker_id=self._worker_id, lease=self._lease)
                for b, n in Counter(turns).items()
            ]
            return [(*claimed, batches[claimed[0].batch_id]) for claimed in chain.from_iterable(taken)], chooser

        # A look first: an idle worker must not write.
        if not await self._database.read(candidates):
            return []
        claimed, self._chooser = await self._database.write(statements)
        self._metrics.takeovers.inc(sum(taken_over for _, taken_over, _ in claimed))
        try:
            planned = await asyncio.to_thread(lambda: [self._records(batch, held) for held, _, batch in claimed])
        except BlobsAway:  # in nobody's hands, only the end of this worker would give them back
            await self.release([held for held, _, _ in claimed])
            raise
        claims: list[Claim] = []
        for (held, _, batch), records in zip(claimed, planned, strict=True):
            if isinstance(records, BlobMissing):
                try:
                    await self.put_aside(held, records)
                except OSError as full:  # what is held and in nobody's hands, only the end of this worker gives back
                    raise records from full
            else:
                claims.append(Claim(slice=held, batch=batch, records=records))
        return claims

    async def put_aside(self, held: Slice, missing: BlobMissing) -> bool:
        """Give a Slice back whose bytes are gone, and leave its batch alone for a while: the others go on.

        True once it is done.
        """
        waiting = "stored bytes are missing; it is tried again every minute"

        def statements(tx: Transaction) -> bool:
            release_slice(tx, batch_id=held.batch_id, ordinal=held.ordinal, epoch=held.epoch, sent=held.sent)
            hold_back(tx, batch_id=held.batch_id, seconds=_ASIDE_SECONDS)
            set_waiting(tx, batch_id=held.batch_id, waiting=waiting, now=int(self._clock.now()))
            return True

        self._log.error("a Slice's bytes are missing", batch=held.batch_id, slice=held.ordinal, exc_info=missing)
        return await self._database.write(statements)

    async def commit(self, portions: Sequence[Portion]) -> frozenset[Fence]:
        """Make the Results durable: one immutable blob, one transaction.

        Returns the claims that were dropped from the group since their fence fell; the others stand. After a fault
        nothing of the group is recorded; the next try has a key of its own.
        """
        if not portions:
            return frozenset()
        portions = sorted(portions, key=lambda portion: portion.slice.fence)  # who locks several does so in one order
        now = self._clock.now()
        key = mint_id("commit", now)
        packed = [pack_results(portion.results) for portion in portions]
        extents = _extents(key, portions, packed)
        causes: dict[Fence, list[Cause]] = {}

        def write_blob() -> None:
            for portion in portions:  # here, since in the transaction others would wait for it
                causes[portion.slice.fence] = causes_of(r.text for r in portion.results if not r.succeeded)
            writer = self._blobs.writer(key)
            try:
                for data in packed:
                    writer.write(data)
                writer.finish()
            finally:
                writer.discard()

        def statements(tx: Transaction) -> frozenset[Fence]:
            stands = [_record(tx, portion) for portion in portions]
            standing = list(compress(portions, stands))
            if standing:
                organisations = {portion.slice.organisation_id for portion in standing}
                insert_ready(
                    tx,
                    key=key,
                    organisation_id=organisations.pop() if len(organisations) == 1 else None,
                    size=sum(map(len, packed)),
                    refs=len(standing),
                    now=int(now),
                )
                seqs, used = _count(tx, standing, causes, now=int(now))
                insert_segments(tx, [replace(e, seq=seqs[e.batch_id]) for e in compress(extents, stands)])
                count_usage(tx, used, day=day_of(now))  # last: other batches' commits wait for these rows, too
            return frozenset(p.slice.fence for p, stood in zip(portions, stands, strict=True) if not stood)

        batches = sorted({portion.slice.batch_id for portion in portions})
        with self._metrics.commit_seconds.time(), self._traces.span("commit", batches=batches) as span:
            results = sum(len(portion.results) for portion in portions)
            span.tell({"batchmill.results": results, "batchmill.bytes": sum(map(len, packed))})
            try:
                fallen = await self._database.write(statements, before=write_blob)
            except OSError as fault:
                if is_full(fault):  # nothing of the transaction is written: the bytes, if they are there, only fill
                    await asyncio.to_thread(self._blobs.delete, key)
                raise
        self._tell(portions, fallen)
        return fallen

    def _tell(self, portions: Sequence[Portion], fallen: frozenset[Fence]) -> None:
        """Count what a commit did."""
        self._metrics.stale_writes.inc(len(fallen))
        for portion in portions:
            if portion.slice.fence not in fallen:
                succeeded = sum(result.succeeded for result in portion.results)
                self._metrics.lines.labels("succeeded").inc(succeeded)
                self._metrics.lines.labels("failed").inc(len(portion.results) - succeeded)

    async def mark_alone(self, held: Slice, line: int | None) -> bool:
        """Say durably that this line of a Slice goes alone now, None that it came back; False if the fence fell."""
        return await self._database.write(
            lambda tx: mark_alone(tx, batch_id=held.batch_id, ordinal=held.ordinal, epoch=held.epoch, line=line)
        )

    async def mark_sent(self, held: Slice, sent: Bitmap) -> bool:
        """Say durably which lines of a Slice may have been sent from now on; False if the fence fell."""
        return await self._database.write(
            lambda tx: mark_sent(tx, batch_id=held.batch_id, ordinal=held.ordinal, epoch=held.epoch, sent=sent)
        )

    async def release(self, slices: Iterable[Slice], *, crashed: Container[Fence] = ()) -> bool:
        """Give Slices back with their holes, for any worker to claim; `sent` of each is kept. True once it is done.

        Those of the `crashed` count as if their owner had died: what was out when a backend fell may fell the next.
        """

        def statements(tx: Transaction) -> bool:
            for held in in_order:
                release_slice(
                    tx,
                    batch_id=held.batch_id,
                    ordinal=held.ordinal,
                    epoch=held.epoch,
                    sent=held.sent,
                    crashed=held.fence in crashed,
                )
            return True

        in_order = sorted(slices, key=lambda held: held.fence)
        return await self._database.write(statements)

    def _records(self, batch: Batch, claimed: Slice) -> tuple[Record, ...] | BlobMissing:
        if batch.plan_key is None:
            raise ValueError(f"{batch.id} has Slices and no Plan")
        offset, length = claimed.first * RECORD_BYTES, claimed.lines * RECORD_BYTES
        try:
            return tuple(unpack(self._blobs.read(batch.plan_key, offset=offset, length=length)))
        except BlobMissing as missing:
            return missing


def _record(tx: Transaction, portion: Portion) -> bool:
    held = portion.slice
    return record_done(
        tx,
        batch_id=held.batch_id,
        ordinal=held.ordinal,
        epoch=held.epoch,
        done=portion.done,
        closed=portion.closed,
    )


def _count(
    tx: Transaction, standing: Sequence[Portion], causes: Mapping[Fence, Sequence[Cause]], *, now: int
) -> tuple[dict[str, int], Mapping[Whose, Used]]:
    """Add each batch's share to its row; return the commit's `seq` in each batch, and who has used what.

    The row is the busiest of all, so only what hangs on it is written after it: what became of the lines, and what
    carries its number, the Segments.
    """
    by_batch: dict[str, list[Portion]] = defaultdict(list)
    for portion in standing:
        by_batch[portion.slice.batch_id].append(portion)
    seqs: dict[str, int] = {}
    used: dict[Whose, Used] = {}
    shares: list[tuple[str, str, Share]] = []
    for batch_id, portions in sorted(by_batch.items()):  # one order for all workers: no deadlock
        owner, parts = portions[0].slice.organisation_id, _used(portions)
        whole = total_used(parts.values())
        results = [result for portion in portions for result in portion.results]
        row = record_progress(
            tx,
            batch_id=batch_id,
            completed=whole.requests - whole.failed,
            failed=whole.failed,
            closed_slices=sum(portion.closed for portion in portions),
            usage=whole.tokens,
            retries=retries_of(results),
        )
        seqs[batch_id] = row.seq
        shares += ((batch_id, owner, share) for share in shares_of(results, usage=whole.tokens))
        errors = by_cause(chain.from_iterable(causes[portion.slice.fence] for portion in portions))
        add_errors(tx, batch_id=batch_id, organisation_id=owner, errors=errors)
        if row.model is None:
            usages = {model: part.tokens for model, part in parts.items() if part.tokens != _NOTHING}
            count_models(tx, batch_id=batch_id, organisation_id=owner, usages=usages)
        for model, part in parts.items():
            whose = Whose(owner, row.key_id or "", model)
            used[whose] = total_used((used.get(whose, Used()), part))
        if row.open_slices == 0 and row.status is Status.IN_PROGRESS:
            advance(tx, batch_id=batch_id, status=Status.IN_PROGRESS, event=Event.DRAINED, now=now)
    add_shares(tx, shares)
    return seqs, used


def _extents(key: str, portions: Sequence[Portion], packed: Sequence[bytes]) -> list[Segment]:
    """Return the Segment of each portion, side by side in one blob; `seq` is known in the transaction only."""
    offsets = accumulate(map(len, packed), initial=0)
    return [
        Segment(
            batch_id=portion.slice.batch_id,
            organisation_id=portion.slice.organisation_id,
            slice=portion.slice.ordinal,
            seq=0,
            blob_key=key,
            offset=offset,
            bytes=len(data),
            lines=len(portion.results),
            crc32=zlib.crc32(data),
        )
        for portion, data, offset in zip(portions, packed, offsets, strict=False)
    ]


def _used(portions: Sequence[Portion]) -> dict[str, Used]:
    """Return what was used of each model."""
    results: dict[str, list[Result]] = defaultdict(list)
    for portion in portions:
        results[portion.slice.model] += portion.results
    return {model: _sum(mine) for model, mine in results.items()}


def _sum(results: Sequence[Result]) -> Used:
    return Used(
        requests=len(results),
        failed=sum(not result.succeeded for result in results),
        tokens=total_tokens(result.usage for result in results if result.usage is not None),
    )
