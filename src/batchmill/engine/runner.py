"""Sends the lines of batches in progress, and makes what became of them durable in group commits."""

import asyncio
from collections.abc import Collection
from dataclasses import replace
from functools import partial

import structlog

from batchmill.blobs.blobs import Blobs
from batchmill.blobs.space import Room
from batchmill.clock import Clock
from batchmill.engine.ahead import Ahead
from batchmill.engine.calls import Calls
from batchmill.engine.feed import Feed
from batchmill.engine.group import Group, GroupBounds
from batchmill.engine.lanes import Lane, Lanes
from batchmill.engine.lease import Lease
from batchmill.engine.loader import Loader
from batchmill.engine.loop import Bell
from batchmill.engine.marks import Marks
from batchmill.engine.sender import Sender, give_up
from batchmill.engine.shortage import Shortage
from batchmill.engine.twins import Twins
from batchmill.engine.watch import WATCH_SECONDS, Watch
from batchmill.engine.work import Request, Work
from batchmill.ledger.ledger import Ledger, Portion
from batchmill.ledger.segment import Result
from batchmill.schedule.retry import OUTCOME_UNKNOWN, WORKER_CRASHED, Later
from batchmill.store.database import Database
from batchmill.store.slice import Fence
from batchmill.telemetry import Metrics

_LONE_DEATHS = 3  # design, "Verdicts": a line that kills its worker three times alone in flight


class Runner:
    """Moves batches through `in_progress`.

    `step` does all that is due; a call that ends between two steps starts the next one by itself.

    Args:
        once: No line may run twice (`on_unknown_outcome = "fail"`): it is announced in its row before it leaves, and
            one whose answer was lost, or whose worker died, ends as `outcome_unknown`.
        coalesce: Of lines of a batch with the same body one is sent.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        database: Database,
        blobs: Blobs,
        room: Room,
        lanes: Lanes,
        feed: Feed,
        sender: Sender,
        lease: Lease,
        clock: Clock,
        bell: Bell,
        bounds: GroupBounds,
        metrics: Metrics,
        once: bool = False,
        coalesce: bool = False,
    ) -> None:
        self._ledger = ledger
        self._lanes = lanes
        self._sender = sender
        self._lease = lease
        self._clock = clock
        self._bell = bell
        self._metrics = metrics
        self._once = once
        self._feed = feed
        self._group = Group(bounds=bounds)
        self._calls = Calls(ended=self._call_ended)
        self._watching = Watch(database=database, feed=feed, calls=self._calls, clock=clock)
        self._fault: BaseException | None = None
        self._watched = self._looked = float("-inf")
        self._sated: frozenset[str] = frozenset()  # models that nothing was found for since the last watch
        self._ahead = Ahead(now=clock.boot())
        self._wakes_at = 0.0
        self._is_dispatch_due = self._starved = self._halted = False
        self._shortage = Shortage(room=room, metrics=metrics)
        self._loader = Loader(feed=self._feed, blobs=blobs, ledger=ledger, shortage=self._shortage)
        self._marks = Marks(feed=self._feed, ledger=ledger, shortage=self._shortage, lose=self._lose)
        self._twins = Twins() if coalesce else None
        self._is_solo = False  # a suspect Slice's line goes alone: nothing else is sent
        self._lone: Work | None = None  # whose line is out alone
        self._log = structlog.get_logger("runner")

    async def step(self) -> None:
        """Watch, claim, load, send, commit, release: whatever is due now."""
        await self._watch()
        await self._claim()
        await self._load()
        await self._go_alone()
        await self._announce()
        self._dispatch()
        await self._commit(force=False)
        self._dispatch()  # it pauses while too much is not durable
        await self._release()
        if self._fault is not None:
            raise self._fault

    async def run(self) -> None:
        """Step until `halt`; between steps, calls end and others start."""
        watching = asyncio.create_task(self._keep_watch())
        try:
            while not self._halted:
                await self.step()
                self._wakes_at = self._due_at()
                await self._bell.wait(self._wakes_at - self._clock.boot())
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _keep_watch(self) -> None:
        """Watch while a step is held up, too: a commit may hang, and calls that end start others meanwhile."""
        try:
            while True:
                left = self._watched + WATCH_SECONDS - self._clock.boot()
                await self._clock.sleep(max(left, 0.01))  # a rounding error of a second is none to wait for
                await self._watch()
        except Exception as fault:  # noqa: BLE001 - the next step raises it
            self._fault = self._fault or fault
            self._bell.ring()

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
        await self._calls.cancel()
        await self._commit(force=True)
        await self._give_back(list(self._feed))
        if self._fault is not None:
            raise self._fault

    async def abort(self) -> None:
        """Give up what is out: `batchmill run` goes on with another worker in this process, on the same lines."""
        self._halted = True
        await self._calls.cancel()

    def _due_at(self) -> float:
        """Return when a step has something to do, if nobody wakes it (boot clock)."""
        times = (self._group.due(), self._feed.wakes_at(), self._lanes.opens_at(self._clock.boot()))
        return min([self._watched + WATCH_SECONDS, *(time for time in times if time is not None)])

    async def _watch(self) -> None:
        """Look at everything that may have changed meanwhile, if it is time to."""
        now = self._clock.boot()
        if now < self._watched + WATCH_SECONDS:
            return
        self._watched, self._sated = now, frozenset()
        self._ahead.measure(now)
        self._lanes.tell(self._metrics)
        self._sender.tell()
        await self._shortage.look()
        await self._watching.look()

    async def _claim(self) -> None:
        """Claim about twenty seconds of work for models that can be served, and a Slice of each batch that waits."""
        models = self._lanes.hungry_models(self._feed.pending) - self._sated or self._lanes.open_models()
        pending, window = self._feed.pending(models), self._lanes.window(models)
        if not models or self._shortage.reason is not None or not self._lease.is_fresh:
            return
        slices = self._ahead.slices(pending=pending, window=window, lines=self._feed.slice_lines)
        if slices:
            claiming = self._ledger.claim(slices=slices, models=models, rate=self._ahead.token_rate)
        elif self._looked != self._watched and self._feed.batches < window:
            # Enough is in hand, but of how many batches? A small one must not wait behind a large one's Slice.
            self._looked = self._watched
            held = {work.batch_id for work in self._feed}
            claiming = self._ledger.claim(slices=window - len(held), models=models, besides=held)
        else:
            return
        claims = await self._shortage.outlive(claiming, otherwise=[])
        self._sated = models if slices and not claims else frozenset()
        for claim in claims:
            self._feed.add(Work(claim=claim, lone=self._lanes.most(models), once=self._once))
        if claims:
            await self._watching.look()  # reading the Plan takes its time: they may be paused or cancelled by now

    async def _load(self) -> None:
        for work in await self._loader.load():
            for request in work.doubtful:  # sent by an owner that died
                self._record(request, give_up(request, OUTCOME_UNKNOWN, attempts=1))
            work.doubtful.clear()

    async def _go_alone(self) -> None:
        """Send a suspect Slice's next line with nothing else in flight, its row saying which: so a killer is found."""
        suspect = None if self._halted else self._feed.suspect(models=self._lanes.open_models(), wall=self._clock.now())
        self._is_solo = suspect is not None or self._lone is not None
        if not self._is_solo or self._calls:
            return
        await self._commit(force=True)
        lone = self._lone
        # Where its line came back undone, the row must not say any more that it is out: a later death is not its own.
        if lone and lone.suspect and lone.is_held and not await self._marks.alone(lone, None):
            return
        self._lone = None
        suspect = self._feed.suspect(models=self._lanes.open_models(), wall=self._clock.now())
        lane = None if suspect is None else self._free_lane(suspect.model)
        self._is_solo = lane is not None
        if suspect is not None and lane is not None:
            await self._send_alone(suspect, lane)

    async def _send_alone(self, suspect: Work, lane: Lane) -> None:
        if not await self._marks.sent(suspect, 1):
            return
        request = suspect.take()
        if request is None:
            return
        held = suspect.claim.slice
        if held.alone == request.index and held.alone_crashes >= _LONE_DEATHS:
            self._log.error("a line killed its worker three times alone", batch=held.batch_id, line=request.record.line)
            self._record(request, give_up(request, WORKER_CRASHED, attempts=held.alone_crashes))
            await self._commit(force=True)
            return
        marked = await self._marks.alone(suspect, request.index)
        # The write may have taken its time: the lease may have lapsed, the batch been paused, the lane gone.
        may_send = suspect.closing_since is None and self._feed.may_send(suspect, wall=self._clock.now())
        if marked and may_send and self._free_lane(suspect.model) is lane:
            self._lone = suspect
            self._start(lane, request, self._clock.boot())
        else:
            suspect.came_back(request, undone=True)
            suspect.put_back(request)

    async def _announce(self) -> None:
        """Let the rows say which lines may have been sent: as many as could go now, and none that came back undone."""
        if not self._once or self._is_solo or self._halted:
            return
        free: dict[str, int] = {}
        for work in self._feed.by_priority():
            left = free.setdefault(work.model, self._lanes.free_slots(work.model))
            if work.is_loaded and not work.suspect:
                await self._marks.sent(work, left)
                free[work.model] = left - min(left, work.pending)

    def _may_send(self) -> bool:
        # A worker that was asleep for a lease must not send a line: others may have taken its Slices.
        return self._fault is None and not (self._halted or self._shortage.reason) and self._lease.holds

    def _free_lane(self, model: str) -> Lane | None:
        return self._lanes.free_lane(model, self._clock.boot()) if self._may_send() else None

    def _dispatch(self) -> None:
        """Start as many calls as the paces allow, the Backends in turns."""
        now, wall = self._clock.boot(), self._clock.now()
        self._feed.wake(now)
        self._starved = self._starved and not self._feed.take_news()
        started = self._may_send() and not self._is_solo
        # With `once` no more is on offer than can go now, the end or not.
        take = partial(self._feed.next, wall=wall, last=() if self._once else self._sated)
        while started:
            started = False
            for lane in self._lanes.in_turns():
                if self._group.is_full or not lane.pace.may_send(now):
                    continue
                request = take(lane, models=self._lanes.served_by(lane), side_by_side=lane.pace.side_by_side)
                if request is not None:
                    started = True
                    if self._twins is None or not self._meets_twin(self._twins, request):
                        self._start(lane, request, now)
                elif not self._starved:
                    self._starved = True  # until something is offered
                    self._bell.ring()

    def _meets_twin(self, twins: Twins, request: Request) -> bool:
        """Say whether a line need not be sent: it has its twin's answer by now, or waits for it."""
        met = twins.meet(request)
        if met is not None:
            self._feed.ended(request)
        if isinstance(met, Result):
            self._came_back(request, met)
        elif met is not None:
            request.work.came_back(request, undone=True)
        return met is not None

    def _start(self, lane: Lane, request: Request, now: float) -> None:
        request.leaves(lane.pace, now)
        trial = lane.pace.sent(now, prefill=request.prompt_tokens)
        self._calls.start(request, self._call(lane, request, trial=trial, sent_at=now))

    async def _call(self, lane: Lane, request: Request, *, trial: bool, sent_at: float) -> None:
        try:
            outcome = await self._sender.send(lane, request, trial=trial, sent_at=sent_at)
            if isinstance(outcome, Later):
                request.work.came_back(request, undone=True)
                self._feed.put_back(request, at=self._clock.boot() + outcome.after)
            else:
                for twin, own in self._twins.answered(request, outcome) if self._twins else ():
                    self._came_back(twin, own)
                self._came_back(request, outcome)
        except asyncio.CancelledError:
            if self._calls.is_ending(request):
                raise
            self._fault = self._fault or RuntimeError("a call was cancelled, and by nobody here")
        except BaseException as fault:  # noqa: BLE001 - the next step raises it
            self._fault = self._fault or fault
        self._calls.ended(request)
        if not self._is_dispatch_due:  # once for all calls that end in the same turn of the loop
            self._is_dispatch_due = True
            asyncio.get_running_loop().call_soon(self._dispatch_now)

    def _dispatch_now(self) -> None:
        self._is_dispatch_due = False
        try:
            self._dispatch()
        except Exception as fault:  # noqa: BLE001 - the next step raises it
            self._fault = self._fault or fault
        if self._fault is not None or self._due_at() < self._wakes_at:
            self._bell.ring()

    def _came_back(self, request: Request, result: Result) -> None:
        if request.work.is_held:
            request.work.came_back(request, undone=False)
            self._record(request, result)

    def _record(self, request: Request, result: Result) -> None:
        """Keep a Result for the next group commit."""
        request.work.record(result)
        self._ahead.line_ended(request.record.tokens)
        self._group.add(size=len(result.text), slice_ended=request.work.ended, now=self._clock.boot())

    def _call_ended(self, request: Request) -> None:
        """Wake the loop if there is something for it to do after a call."""
        work = request.work
        work.out -= 1
        self._feed.ended(request, answered=work.is_done(request))
        for twin in self._twins.ended(request) if self._twins else ():
            twin.work.came_back(twin, undone=True)
            self._feed.put_back(twin, at=self._clock.boot())
        if self._is_solo or work.closing_since is not None or self._fault is not None:
            self._bell.ring()

    async def _commit(self, *, force: bool) -> None:
        """Commit the group if it is due; sending goes on meanwhile."""
        now = self._clock.boot()
        due = self._group.due()
        if due is None or (now < due and not force):
            return
        self._group.start(now)
        handed = [(work, portion) for work in self._feed if (portion := work.portion()) is not None]
        fallen = await self._shortage.outlive(self._ledger.commit([portion for _, portion in handed]), otherwise=None)
        if fallen is None:
            self._keep(handed)
            return
        self._group.stood()
        for work, portion in handed:
            if portion.slice.fence in fallen:
                await self._lose(work)
            elif portion.closed:
                self._feed.remove(work)
            else:
                work.stood(portion)
                self._feed.offer(work)

    def _keep(self, handed: Collection[tuple[Work, Portion]]) -> None:
        """Keep Results for which there was no space: the reserve makes some, and the next commit is tried soon."""
        self._log.warning("results wait in memory", results=sum(len(portion.results) for _, portion in handed))
        for work, portion in handed:
            work.keep(portion)
        self._group.failed(self._clock.boot())

    async def _lose(self, work: Work) -> None:
        """Let go of a Slice that is another's by now: its calls are in vain."""
        self._log.warning("stale write refused", batch=work.batch_id, slice=work.claim.slice.ordinal)
        self._feed.remove(work)  # first: a call of another Slice that ends meanwhile sends the next line
        await self._calls.cancel(self._calls.of(work))

    async def _release(self) -> None:
        """Give back what is closing or paused, and what others may serve, once nothing of it is out."""
        now = self._clock.boot()
        stranded = self._lanes.stranded({work.model for work in self._feed}, now)
        over = [work for work in self._feed if work.closing_since is not None or self._feed.is_paused(work)]
        left = [work for work in self._feed if work not in over and work.model in stranded]
        released = [work for work in (*over, *left) if work.idle]
        crashed = {work.claim.slice.fence for work in left if work.idle and work.is_tried}
        for work in released:
            work.close(now)  # nothing of it leaves while it is given back, whatever changes meanwhile
        if released and await self._give_back(released, crashed=crashed):
            for work in released:
                self._feed.remove(work)

    async def _give_back(self, works: Collection[Work], *, crashed: Collection[Fence] = ()) -> bool:
        """Let go of Slices; False where there was no space to say so: their leases lapse, or it is said later."""
        slices = (replace(work.claim.slice, sent=work.uncertain()) for work in works)
        return await self._shortage.outlive(self._ledger.release(list(slices), crashed=crashed), otherwise=False)
