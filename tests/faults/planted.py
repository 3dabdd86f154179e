"""Known bugs, put into a process of the harness by name, to see that the harness finds them.

Nothing in the product knows of this: each bug replaces functions in the process that was told to have it. A bug that
cannot be planted any more, since what it replaces has gone, fails loudly with an AttributeError.
"""

import asyncio
import inspect
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

from sqlalchemy import select, update

import batchmill.api.batches as api_batches
import batchmill.api.steer as api_steer
from batchmill.backends.backend import Call, Reply
from batchmill.backends.http import HttpBackend
from batchmill.blobs.bucket import BucketBlobs
from batchmill.engine import feed, finalizer, sender, sweeper, work
from batchmill.engine.lease import Lease
from batchmill.ledger import ledger, merge
from batchmill.schedule.pace import Pace
from batchmill.schedule.retry import Fault, GaveUp, Later
from batchmill.spec import errors
from batchmill.spec.lines import Envelope, RawLine
from batchmill.spec.states import Status
from batchmill.store.blob import known_keys
from batchmill.store.database import Transaction
from batchmill.store.postgres import PostgresDatabase
from batchmill.store.slice import Fence
from batchmill.store.tables import batch, slice_
from batchmill.validation import validation

_CANCELLED = b'"code":"batch_cancelled"'
_LONG = 3600.0  # seconds
_POISON = re.compile(rb'"content" ?: ?"poison-')


def plant(name: str) -> None:
    """Put this bug into the present process; "" is none."""
    if name:
        PLANTED[name]()


def _taken(room: Any, name: str) -> Any:  # noqa: ANN401 - any module or class
    """Return what is about to be replaced: a room's imports are not for others, save here."""
    return getattr(room, name)


def _replace(room: Any, name: str, new: Any) -> None:  # noqa: ANN401 - any module or class, and what it holds
    if not hasattr(room, name):
        raise AttributeError(f"{room} has no {name} any more: this bug must be planted elsewhere")
    old = getattr(room, name)
    if inspect.isfunction(old) and inspect.isfunction(new):
        took, takes = (inspect.signature(each).parameters.values() for each in (old, new))
        others = {parameter.name for parameter in took} - {parameter.name for parameter in takes}
        if others and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes):
            raise AttributeError(f"{room}.{name} takes {others} now: this bug must be planted anew")
    setattr(room, name, new)


def _write_unfenced(tx: Transaction, *, batch_id: str, ordinal: int, done: bytes, closed: bool) -> bool:
    values: dict[str, object] = {"done": done}
    if closed:
        values |= {"open": False, "owner": None, "lease_until": None}
    mine = (slice_.c.batch_id == batch_id, slice_.c.ordinal == ordinal)
    return tx.connection.execute(update(slice_).where(*mine).values(values)).rowcount == 1


def no_fence() -> None:
    """Whoever has Results writes them, whatever the epoch."""
    _blind()

    def record_done(tx: Transaction, *, epoch: int, **held: Any) -> bool:  # noqa: ANN401, ARG001
        return _write_unfenced(tx, **held)

    _replace(ledger, "record_done", record_done)


def fence_in_python() -> None:
    """The epoch is looked at before the group commit, not by the statement that writes."""
    commit = ledger.Ledger.commit

    async def checked(self: Any, portions: Any) -> Any:  # noqa: ANN401
        def fences(tx: Transaction) -> set[Fence]:
            rows = tx.connection.execute(select(slice_.c.batch_id, slice_.c.ordinal, slice_.c.epoch))
            return {(row.batch_id, row.ordinal, row.epoch) for row in rows}

        now = await self._database.read(fences)
        stand = [portion for portion in portions if portion.slice.fence in now]
        return await commit(self, stand) | {portion.slice.fence for portion in portions} - now

    no_fence()
    _replace(ledger.Ledger, "commit", checked)


def _blind() -> None:
    """A worker takes its own lease for fresh: else it would hardly ever try what the fence is there to refuse.

    All that a `Lease` says of itself is derived from what is left of it.
    """
    _replace(Lease, "left", property(lambda _: _LONG))


def two_transactions() -> None:
    """The Results are written in one transaction, what they add up to in another, a moment later."""
    commit, counted, pending = ledger.Ledger.commit, ledger._count, []

    def postponed(tx: Transaction, standing: Any, *, now: int) -> dict[str, int]:  # noqa: ANN401
        pending.append((standing, now))
        ids = {portion.slice.batch_id for portion in standing}
        these = update(batch).where(batch.c.id.in_(ids)).values(seq=batch.c.seq + 1)
        return {row.id: row.seq for row in tx.connection.execute(these.returning(batch.c.id, batch.c.seq))}

    async def in_two(self: Any, portions: Any) -> Any:  # noqa: ANN401
        fallen = await commit(self, portions)
        await asyncio.sleep(0.1)
        while pending:
            standing, now = pending.pop()
            await self._database.write(lambda tx, s=standing, n=now: counted(tx, s, now=n))
        return fallen

    _replace(ledger, "_count", postponed)
    _replace(ledger.Ledger, "commit", in_two)


def recorded_lines_sent_again() -> None:
    """The bitmap of a Slice that is taken over is not looked at."""
    made = work.Work.__init__

    def forgetful(self: Any, *, claim: Any, lone: int, once: bool) -> None:  # noqa: ANN401
        held = claim.slice
        made(self, claim=replace(claim, slice=replace(held, done=bytes(len(held.done)))), lone=lone, once=once)

    _replace(work.Work, "__init__", forgetful)


def record_skipped() -> None:
    """Every other group commit forgets its bitmaps."""
    kept, turns = _taken(ledger, "record_done"), count()

    def record_done(tx: Transaction, **held: Any) -> bool:  # noqa: ANN401
        return bool(next(turns) % 2 == 0 and not held["closed"]) or bool(kept(tx, **held))

    _replace(ledger, "record_done", record_done)


def cancel_overwrites() -> None:
    """A cancel moves a batch from wherever it is."""

    def move(tx: Transaction, organisation_id: str, caller: str, batch_id: str, *, now: int) -> Any:  # noqa: ANN401, ARG001
        this = update(batch).where(batch.c.id == batch_id)
        tx.connection.execute(this.values(status=Status.CANCELLING.value, cancelling_at=now))
        return _taken(api_batches, "find_batch")(tx, organisation_id=organisation_id, batch_id=batch_id)

    _replace(api_batches, "_cancel", move)


def seal_keeps_counts() -> None:
    """The seal leaves the counts as the commits left them: lines that were never answered are in no count."""
    advance = _taken(finalizer, "advance")

    def keeping(tx: Transaction, *, values: Any, **of: Any) -> bool:  # noqa: ANN401
        kept = {name: value for name, value in values.items() if name not in ("completed", "failed")}
        return bool(advance(tx, values=kept, **of))

    _replace(finalizer, "advance", keeping)


def expiry_drops_results() -> None:
    """What was done before the window closed is written as expired."""
    written = _taken(finalizer, "merge_results")

    def merge_results(*, slices: Any, segments: Any, rest: Any, **of: Any) -> Iterator[merge.Merged]:  # noqa: ANN401
        if rest is not None and rest.code == "batch_expired" and any(not _is_whole(held) for held in slices):
            slices = [replace(held, done=bytes(len(held.done))) for held in slices]
            segments = []
        yield from written(slices=slices, segments=segments, rest=rest, **of)

    _replace(finalizer, "merge_results", merge_results)


def _is_whole(held: Any) -> bool:  # noqa: ANN401
    return sum(byte.bit_count() for byte in held.done) == int(held.lines)


def done_line_expired() -> None:
    """The last Result of each Slice that is not whole is written as its rest, too late to be the line's."""
    found = merge._results_of_slice

    def short(*, held: Any, facts: Any, first: int, **of: Any) -> list[merge.Text | None]:  # noqa: ANN401
        texts = found(held=held, facts=facts, first=first, **of)
        answered = [index for index, text in enumerate(texts) if text is not None]
        if 0 < len(answered) < held.lines:
            texts[answered[-1]], facts.succeeded[first + answered[-1]] = None, False
        return texts

    _replace(merge, "_results_of_slice", short)
    _replace(merge, "count", lambda _start: itertools.repeat(0))  # one rest more than there are ranks for


def cancel_drops_open_lines() -> None:
    """Of a batch that was cancelled, some lines that were never answered are in neither file, nor counted."""
    written = _taken(finalizer, "merge_results")

    def merge_results(*, rest: Any, **of: Any) -> Iterator[merge.Merged]:  # noqa: ANN401
        for merged in written(rest=rest, **of):
            if not merged.rest or rest.code != "batch_cancelled":
                yield merged
            else:
                kept = [at for at, text in enumerate(merged.texts) if at % 16 or _CANCELLED not in bytes(text)]
                yield replace(
                    merged,
                    texts=[merged.texts[at] for at in kept],
                    succeeded=[merged.succeeded[at] for at in kept],
                    ranks=[merged.ranks[at] for at in kept],
                    rest=merged.rest[: len(merged.rest) - len(merged.texts) + len(kept)],
                )

    _replace(finalizer, "merge_results", merge_results)


def sweeper_takes_the_living() -> None:
    """Bytes without a row are removed although they may be on their way: a group commit writes them first."""
    with_care = sweeper.Sweeper._remove_orphans

    async def remove(self: Any) -> bool:  # noqa: ANN401
        keys = list(self._blobs.keys(before=time.time() + 60.0))
        known = await self._database.read(lambda tx: known_keys(tx, keys=keys))
        for key in set(keys) - known:
            self._blobs.delete(key)
        return await with_care(self)

    _replace(sweeper.Sweeper, "_remove_orphans", remove)


def body_written_anew() -> None:
    """The body is read and written again on its way."""
    as_it_is = _taken(work.Work, "envelope")

    def envelope(self: work.Work, request: work.Request) -> Envelope:
        found: Envelope = as_it_is(self, request)
        return found._replace(body=json.dumps(json.loads(found.body)).encode())

    _replace(work.Work, "envelope", envelope)


def lines_of_text() -> None:
    """Lines end wherever `str.splitlines` says, not at line feeds alone."""

    def read_lines(readline: Callable[[int], bytes], max_line_bytes: int) -> Iterator[RawLine]:
        at = 0
        content = b"".join(iter(lambda: readline(max_line_bytes), b"")).decode()
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            size = len(line.encode())
            if line.strip():
                yield RawLine(number, at, line.rstrip("\r\n\u2028\u0085").encode(), over=False)
            at += size

    _replace(validation, "read_lines", read_lines)


def outage_costs_attempts() -> None:
    """A backend that is away is the line's own fault, and one try is enough."""
    judged = _taken(sender, "judge")

    def judge(*, status: int | None, fault: Fault | None, **of: Any) -> Any:  # noqa: ANN401
        verdict = judged(status=status, fault=fault, **of)
        if isinstance(verdict, Later) and verdict.unwell:
            return GaveUp(code="upstream_unavailable", message="The model server gave no answer.")
        return verdict

    _replace(sender, "judge", judge)


def circuit_stays_open() -> None:
    """A probe that succeeds is not believed."""
    _replace(Pace, "probed", lambda self, ok, now: None)  # noqa: ARG005


def waiting_line_forgotten() -> None:
    """A line that is to be sent again without an attempt used up, as after a 429, is not taken back."""
    put_back = feed.Feed.put_back

    def forgetful(self: Any, request: Any, *, at: float) -> None:  # noqa: ANN401
        if request.attempts or request.doubted is not None or request.falls:
            put_back(self, request, at=at)

    _replace(feed.Feed, "put_back", forgetful)


def pause_not_kept() -> None:
    """A pause is acknowledged, and no row says so."""
    _replace(api_steer, "pause", lambda tx, found, now: True)  # noqa: ARG005


def order_kept_by_slice() -> None:
    """What is kept of the order of Results is that of their Slices, not that in which they came."""
    ranks = merge.first_ranks

    def first_ranks(segments: Any) -> list[int]:  # noqa: ANN401
        return ranks([replace(each, seq=0) for each in segments])

    _replace(merge, "first_ranks", first_ranks)


def poison() -> None:
    """Not a bug of ours: the answer to a line whose prompt begins with `poison` ends its worker's process."""
    sent = HttpBackend.send

    async def send(self: HttpBackend, call: Call) -> Reply:
        reply = await sent(self, call)
        if _POISON.search(call.body):
            os._exit(9)
        return reply

    _replace(HttpBackend, "send", send)


def lost_commit_taken_for_failed() -> None:
    """A commit whose answer was lost is done again, without a look at what became of it."""

    async def never(self: PostgresDatabase, doubt: object, until: float) -> bool:  # noqa: ARG001
        return False

    _replace(PostgresDatabase, "_is_committed", never)


def counts_read_then_written() -> None:
    """The counts of a batch are read, added to here, and written: of two workers at once one forgets the other's."""
    progress = ledger.record_progress  # type: ignore[attr-defined]

    def record_progress(tx: Transaction, *, batch_id: str, **of: Any) -> Any:  # noqa: ANN401
        mine = batch.c.id == batch_id
        before = tx.connection.execute(select(batch.c.completed, batch.c.failed).where(mine)).one()
        time.sleep(0.002)  # a round trip, and what lies between
        found = progress(tx, batch_id=batch_id, **of)
        counts = {"completed": before.completed + of["completed"], "failed": before.failed + of["failed"]}
        tx.connection.execute(update(batch).where(mine).values(counts))
        return found

    _replace(ledger, "record_progress", record_progress)


def away_is_our_fault() -> None:
    """A database or a bucket that is away is answered with 500."""
    _replace(errors, "unavailable", lambda message, retry_after: errors.server_error())  # noqa: ARG005


def lost_put_taken_for_another() -> None:
    """A key that has bytes already, after the answer to a PUT was lost, is taken for someone else's."""
    _replace(BucketBlobs, "holds", lambda self, key, written: False)  # noqa: ARG005


def is_found(name: str, violations: Collection[str]) -> bool:
    """Say whether a run has found this bug; one of the fence by what was recorded, not by its workers' blindness."""
    return any(violation.startswith("R4 ") or name not in BLIND for violation in violations)


BUGS: tuple[Callable[[], None], ...] = (
    no_fence,
    fence_in_python,
    two_transactions,
    recorded_lines_sent_again,
    record_skipped,
    cancel_overwrites,
    seal_keeps_counts,
    expiry_drops_results,
    done_line_expired,
    cancel_drops_open_lines,
    sweeper_takes_the_living,
    body_written_anew,
    lines_of_text,
    outage_costs_attempts,
    circuit_stays_open,
    waiting_line_forgotten,
    pause_not_kept,
    order_kept_by_slice,
)
# Those that only PostgreSQL and a bucket can show.
REMOTE_BUGS: tuple[Callable[[], None], ...] = (
    lost_commit_taken_for_failed,
    counts_read_then_written,
    away_is_our_fault,
    lost_put_taken_for_another,
)
# Their workers are blind for their sake.
BLIND = ("no_fence", "fence_in_python")
# Those that only a batch shows that is far from its end.
LARGE = (*BLIND, "pause_not_kept")
PLANTED: Mapping[str, Callable[[], None]] = {bug.__name__: bug for bug in (*BUGS, *REMOTE_BUGS, poison)}
