"""Sends the lines of batches in progress, and makes what became of them durable in group commits."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from batchmill.backends.backend import Backend, Call, Reply
from batchmill.backends.router import Router
from batchmill.blobs.blobs import Blobs
from batchmill.clock import Clock
from batchmill.engine.feed import Feed, Request, Work
from batchmill.engine.group import Group, GroupBounds
from batchmill.engine.loop import Bell
from batchmill.ledger.ledger import Ledger
from batchmill.ledger.segment import Result
from batchmill.schedule.pace import Pace
from batchmill.schedule.plan import SLICE_LINES
from batchmill.schedule.retry import GaveUp, Later, Verdict, judge
from batchmill.spec.lines import split_envelope
from batchmill.spec.objects import Usage
from batchmill.spec.results import answered, result_id, unanswered, usage_of
from batchmill.spec.states import Status
from batchmill.store.batch import statuses_of
from batchmill.store.database import Database

_WATCH_SECONDS = 0.5  # how often held batches are looked at: sends stop within a second of a cancel
_CLOSING_SECONDS = 30.0  # open calls of a closing batch may end so long
_AHEAD_SECONDS = 20.0  # claimed ahead: about so much work
_LOADED_BYTES = 64 << 20  # bodies in memory, over all claimed Slices; one Slice is always loaded
_SLICES_A_CLAIM = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A Backend and how much it gets."""

    backend: Backend
    pace: Pace


class Runner:
    """Moves batches through `in_progress`.

    `step` does all that is due; a call that ends between two steps starts the next one by itself.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        database: Database,
        blobs: Blobs,
        lanes: Sequence[Lane],
        router: Router,
        clock: Clock,
        bell: Bell,
        unwell: Bell,
        draw: Callable[[], float],
        bounds: GroupBounds,
    ) -> None:
        self._ledger = ledger
        self._database = database
        self._blobs = blobs
        self._lanes = lanes
        self._router = router
        self._clock = clock
        self._bell = bell
        self._unwell = unwell  # rung when a backend needs a probe
        self._draw = draw  # uniform in [0, 1): the jitter of retries
        self._feed = Feed()
        self._group = Group(bounds=bounds)
        self._calls: dict[asyncio.Task[None], Request] = {}
        self._fault: BaseException | None = None
        self._watched = float("-inf")
        self._looked = float("-inf")
        self._rate = 0.0  # lines a second, smoothed
        self._ended = 0
        self._rated = clock.boot()
        self._wakes_at = 0.0
        self._starved = False
        self._halted = False
        self._log = structlog.get_logger("runner")

    async def step(self) -> None:
        """Watch, claim, load, send, commit, release: whatever is due now."""
        await self._watch()
        await self._claim()
        await self._load()
        self._dispatch()
        await self._commit(force=False)
        self._dispatch()  # it pauses while too much is not durable
        await self._release()
        if self._fault is not None:
            raise self._fault

    async def run(self) -> None:
        """Step until `halt`; between steps, calls end and others start."""
        while not self._halted:
            await self.step()
            self._wakes_at = self._due_at()
            await self._bell.wait(self._wakes_at - self._clock.boot())

    def halt(self) -> None:
        """Send nothing more; `run` returns after its step, never in the middle of a commit."""
        self._halted = True
        self._bell.ring()

    async def drain(self, *, seconds: float) -> None:
        """After `halt`: let open calls end for so long, make all Results durable, give the Slices back."""
        patience = asyncio.ensure_future(self._clock.sleep(seconds))
        while self._calls and not patience.done():
            await asyncio.wait([*self._calls, patience], return_when=asyncio.FIRST_COMPLETED)
            await self._commit(force=False)
        patience.cancel()
        await self._cancel_calls(list(self._calls))
        await self._commit(force=True)
        await self._ledger.release([work.claim.slice for work in self._feed])
        if self._fault is not None:
            raise self._fault

    def _due_at(self) -> float:
        """Return when a step has something to do, if nobody wakes it (boot clock)."""
        times = (self._watched + _WATCH_SECONDS, self._group.due(), self._feed.wakes_at())
        return min(time for time in times if time is not None)

    async def _watch(self) -> None:
        """Stop sending for batches that are not in progress any more or whose window has closed."""
        now = self._clock.boot()
        if now < self._watched + _WATCH_SECONDS:
            return
        self._watched = now
        self._measure(now)
        held = sorted({work.batch_id for work in self._feed})
        if not held:
            return
        statuses = await self._database.read(lambda tx: statuses_of(tx, batch_ids=held))
        late: list[asyncio.Task[None]] = []
        for work in self._feed:
            if statuses.get(work.batch_id) is not Status.IN_PROGRESS or self._clock.now() >= work.expires_at:
                work.close(now)
            if work.closing_since is not None and now >= work.closing_since + _CLOSING_SECONDS:
                late += [call for call, request in self._calls.items() if request.work is work]
        await self._cancel_calls(late)

    def _measure(self, now: float) -> None:
        elapsed = max(now - self._rated, 1e-3)
        self._rate = 0.5 * self._rate + 0.5 * self._ended / elapsed
        self._ended, self._rated = 0, now

    async def _claim(self) -> None:
        """Claim about twenty seconds of work for models that can be served, and a Slice of each batch that waits."""
        lanes = [lane for lane in self._lanes if not lane.pace.is_open]
        models = frozenset[str]().union(*(self._router.served_by(lane.backend) for lane in lanes))
        window = sum(lane.pace.window for lane in lanes)
        pending = self._feed.pending(models)
        if not models:
            return
        if pending < max(window, self._rate * _AHEAD_SECONDS / 2):
            wanted = max(2 * window, self._rate * _AHEAD_SECONDS) - pending
            claims = await self._ledger.claim(
                slices=max(1, min(_SLICES_A_CLAIM, round(wanted / SLICE_LINES))), models=models
            )
        elif self._looked != self._watched and self._feed.batches < window:
            # Enough is in hand, but of how many batches? A small one must not wait behind a large one's Slice.
            self._looked = self._watched
            held = {work.batch_id for work in self._feed}
            claims = await self._ledger.claim(slices=window - len(held), models=models, besides=held)
        else:
            return
        for claim in claims:
            self._feed.add(Work(claim=claim))
            self._starved = False

    async def _load(self) -> None:
        """Read claimed Slices' lines into memory, as many as the bound holds."""
        loaded = sum(len(work.text) for work in self._feed if work.text is not None)
        for work in self._feed:
            if work.text is None and work.pending and (loaded == 0 or loaded < _LOADED_BYTES):
                key = work.claim.batch.input_key
                if key is None:
                    raise ValueError(f"{work.batch_id} is in progress and has no input")
                offset, length = work.span()
                work.text = await asyncio.to_thread(self._blobs.read, key, offset=offset, length=length)
                work.text_from = offset
                loaded += length

    def _dispatch(self) -> None:
        """Start as many calls as the paces allow, the Backends in turns."""
        now, wall = self._clock.boot(), self._clock.now()
        self._feed.wake(now)
        started = not self._halted
        while started:
            started = False
            for lane in self._lanes:
                if self._group.is_full or not lane.pace.may_send(now):
                    continue
                request = self._feed.next(models=self._router.served_by(lane.backend), wall=wall)
                if request is not None:
                    self._start(lane, request, now)
                    started = True
                elif not self._starved:
                    self._starved = True  # until something is claimed
                    self._bell.ring()

    def _start(self, lane: Lane, request: Request, now: float) -> None:
        work = request.work
        work.out += 1
        request.sends += 1
        lane.pace.sent(now)
        call = asyncio.create_task(self._call(lane, request))
        self._calls[call] = request
        call.add_done_callback(self._call_ended)

    async def _call(self, lane: Lane, request: Request) -> None:
        work = request.work
        line_id = result_id(work.batch_id, request.record.line)
        request_id = f"req{line_id.removeprefix('batch_req')}_{work.claim.slice.epoch}a{request.sends}"
        sent_at = self._clock.boot()
        envelope = split_envelope(work.line(request))
        call = Call(
            endpoint=work.claim.batch.object.endpoint,
            body=envelope.body,
            request_id=request_id,
            idempotency_key=line_id,
        )
        try:
            reply = await lane.backend.send(call)
        except asyncio.CancelledError:
            lane.pace.withdrawn()
            raise
        verdict = self._judge(lane, request, reply, sent_at=sent_at)
        if isinstance(verdict, Later):
            request.attempts += verdict.attempt_used
            self._feed.put_back(request, at=self._clock.boot() + verdict.after)
        elif isinstance(verdict, GaveUp):
            text = unanswered(line_id, envelope.custom_id, verdict.code, verdict.message)
            self._record(request, text=text, usage=None, succeeded=False)
        elif reply.status is not None:
            text = answered(line_id, envelope.custom_id, reply.status, request_id, reply.body)
            usage = usage_of(reply.body) if verdict.succeeded else None
            self._record(request, text=text, usage=usage, succeeded=verdict.succeeded)
        else:
            raise ValueError("a Reply without a status cannot be done")
        self._dispatch()

    def _judge(self, lane: Lane, request: Request, reply: Reply, *, sent_at: float) -> Verdict:
        """Say what a Reply means, and let the pace learn from it."""
        verdict = judge(
            status=reply.status,
            fault=reply.fault,
            retry_after=reply.retry_after,
            attempts=request.attempts + 1,
            draw=self._draw(),
        )
        was_well = lane.pace.unwell_since is None
        lane.pace.answered(verdict, self._clock.boot(), sent_at)
        if was_well and lane.pace.unwell_since is not None:
            why = {"status": reply.status, "fault": reply.fault, "detail": reply.detail}
            self._log.warning("backend unwell: its requests wait", backend=lane.backend.name, **why)
            self._unwell.ring()
        return verdict

    def _record(self, request: Request, *, text: bytes, usage: Usage | None, succeeded: bool) -> None:
        """Keep a Result for the next group commit."""
        work = request.work
        work.record(
            Result(index=request.index, succeeded=succeeded, attempts=request.attempts + 1, text=text, usage=usage)
        )
        self._ended += 1
        self._group.add(size=len(text), slice_ended=work.ended, now=self._clock.boot())

    def _call_ended(self, call: asyncio.Task[None]) -> None:
        """Take a call off the list, and wake the loop if there is something for it to do."""
        work = self._calls.pop(call).work
        work.out -= 1
        if not call.cancelled():
            self._fault = self._fault or call.exception()
        if self._fault is not None or work.closing_since is not None or self._due_at() < self._wakes_at:
            self._bell.ring()

    async def _cancel_calls(self, calls: Sequence[asyncio.Task[None]]) -> None:
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)

    async def _commit(self, *, force: bool) -> None:
        """Commit the group if it is due; sending goes on meanwhile."""
        now = self._clock.boot()
        due = self._group.due()
        if due is None or (now < due and not force):
            return
        self._group.start(now)
        handed = [(work, portion) for work in self._feed if (portion := work.portion()) is not None]
        fallen = await self._ledger.commit([portion for _, portion in handed])
        for work, portion in handed:
            if (portion.slice.batch_id, portion.slice.ordinal) in fallen:
                self._log.warning("stale write refused", batch=work.batch_id, slice=portion.slice.ordinal)
                await self._cancel_calls([call for call, request in self._calls.items() if request.work is work])
                self._feed.remove(work)
            elif portion.closed:
                self._feed.remove(work)

    async def _release(self) -> None:
        """Give back the Slices of closing batches once nothing of them is out."""
        released = [work for work in self._feed if work.closing_since is not None and work.idle]
        if released:
            await self._ledger.release([work.claim.slice for work in released])
        for work in released:
            self._feed.remove(work)
