"""One run of one to three simulated workers: their clients, what befalls them, and the look at the end."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import delete

from batchmill.backends.backend import Call
from batchmill.backends.router import Router
from batchmill.blobs.blobs import BlobMissing
from batchmill.blobs.disk import DiskBlobs
from batchmill.engine.feed import Feed
from batchmill.engine.finalizer import Finalizer
from batchmill.engine.group import GroupBounds
from batchmill.engine.lanes import Lane, Lanes
from batchmill.engine.lease import Lease
from batchmill.engine.loop import Bell
from batchmill.engine.runner import Runner
from batchmill.engine.scout import Scout
from batchmill.engine.sender import Sender
from batchmill.engine.sharing import Sharing
from batchmill.engine.sweeper import Sweeper
from batchmill.engine.validator import Validator
from batchmill.engine.worker import LeaseLost, Worker
from batchmill.ledger.ledger import Ledger
from batchmill.schedule.pace import Pace
from batchmill.spec import ids
from batchmill.spec.limits import OPEN
from batchmill.spec.states import Status
from batchmill.store.batch import Batch
from batchmill.store.database import SqliteDatabase, Transaction
from batchmill.store.migrate import migrate
from batchmill.store.steer import pause, resume, set_priority, set_window
from batchmill.store.tables import metadata
from batchmill.telemetry import Metrics
from faults.client import CHAT, Client
from faults.oracle import STUCK_SECONDS, Account, Line, Oracle, Violation, hold
from faults.seams import Begun, Fate, Seam, SeamBackend, SeamBlobs, SeamDatabase, SeamRoom, Trace
from faults.virtual import Process, VirtualClock, VirtualLoop, context_of

LEASE = 5.0
DRAIN = 30.0
MODELS = ("m0", "m1", "m2", "m3", "m4")  # a Slice is of one model: many of them make small ones
_STEERING = 1_005
_GARBAGE_SECONDS = 4_000.0  # past the hour after which the Sweeper takes what nobody knows
# Chances at one crossing; a seed has each kind not at all, so, or three times so.
_RATES = {
    "kill before": 0.0015,
    "kill after": 0.0015,
    "kill inside": 0.003,
    "stop": 0.002,
    "delay": 0.15,
    "long delay": 0.004,
    "lost answer": 0.004,
    "reset": 0.03,
    "timeout": 0.01,
    "garbled": 0.02,
    "pressure": 0.03,
    "bad gateway": 0.02,
}
_TIMED = ("kill", "stop", "term", "outage", "disk", "clock")
_CANCELLED_IN = (Status.VALIDATING, Status.IN_PROGRESS, Status.FINALIZING)
# What may end a worker while faults are active: our own errors, and its own insight.
_EXPECTED = (OSError, LeaseLost)


@dataclass(slots=True, kw_only=True)
class Hand:
    """A worker that runs: its process, its id in the rows, and its stop."""

    process: Process
    worker_id: str
    stopping: asyncio.Event
    over: asyncio.Future[None]
    woke_at: float = float("-inf")


class World:
    """What outlives a run: the tables and the folder, emptied between two seeds."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self.path = folder / "rows.sqlite3"
        self.database = SqliteDatabase(path=self.path, clock=self.clock)
        self.blobs = DiskBlobs(folder=folder / "blobs")
        asyncio.run(self.database.write(migrate))

    def empty(self, loop: VirtualLoop) -> None:
        """Forget the last run."""

        def statements(tx: Transaction) -> None:
            for table in reversed(metadata.sorted_tables):
                tx.connection.execute(delete(table))

        loop.run_until_complete(self.database.write(statements))
        for key in list(self.blobs.keys(before=float("inf"))):
            self.blobs.delete(key)

    def close(self) -> None:
        """Close the rows."""
        asyncio.run(self.database.close())


class Simulation:
    """One seed's run."""

    def __init__(self, *, world: World, loop: VirtualLoop, seed: int) -> None:
        self._world = world
        self._loop = loop
        self._clock = world.clock
        self._rng = random.Random(seed)  # noqa: S311 - drawn again from the same seed
        self._steering = random.Random(seed + _STEERING)  # noqa: S311 - one of its own: older seeds find what they found
        self._steers = self._steering.random() < 0.5
        self.trace = Trace(loop)
        rates = {kind: rate * self._rng.choice((0, 1, 1, 3)) for kind, rate in _RATES.items()}
        self._fate = Fate(rng=self._rng, rates=rates, trace=self.trace)
        self._timed = [kind for kind in _TIMED if self._rng.random() < 0.5]
        self._faults_end = self._rng.uniform(5.0, 20.0)
        self._workers = self._rng.choice((1, 2, 2, 3))
        self._once = self._rng.random() < 0.2  # on_unknown_outcome = fail
        self.begun = Begun()
        self.oracle = Oracle(world.path, world.blobs, world.clock, once=self._once)
        self._hands: dict[str, Hand] = {}
        self._processes: list[Process] = []
        self._clients: list[Client] = []
        self._wrong: list[str] = []
        self._commit: asyncio.Future[None] = loop.create_future()  # the next one
        loop.thread_delay = self._fate.delay

    # What the seams ask for.

    def kill(self, process: Process, place: str) -> None:
        """Kill a process: the supervisor starts another."""
        hand = self._hands.pop(process.name)
        statuses = sorted(set(self.oracle.statuses()))
        self.trace.note("kill", process.name, place)
        for status in statuses:
            self.trace.counts[f"kill while {status}"] += 1
        process.kill()
        self.oracle.excuse_sent(hand.worker_id)
        hand.over.set_result(None)

    def stop(self, process: Process, place: str) -> None:
        """Stop a process for 1.6 leases."""
        hand = self._hands[process.name]
        self.trace.note("stop", process.name, place)
        self.oracle.excuse_held(hand.worker_id)
        process.stop()
        self._loop.call_later(1.6 * LEASE, self._go_on, hand, context=_no_process())

    def _go_on(self, hand: Hand) -> None:
        if not hand.process.dead:
            self.trace.note("goes on", hand.process.name)
            hand.woke_at = self._loop.time()
            self.oracle.excuse_held(hand.worker_id)
            hand.process.go_on()

    def committed(self) -> None:
        """Look at the rows; what is wrong is kept, since a worker would take it for a fault of its own."""
        with self._judging():
            self.oracle.committed()
        if not self._commit.done():
            self._commit.set_result(None)

    def sends(self, process: Process, call: Call) -> None:
        """The witness."""
        hand = self._hands[process.name]
        self.trace.note("send", process.name, call.request_id)
        with self._judging():
            self.oracle.sends(hand.worker_id, call, awake=self._loop.time() - hand.woke_at)

    def bad_reply(self, call: Call) -> None:
        """It may be sent once more."""
        self.oracle.lines[call.idempotency_key].bad_replies += 1

    @contextmanager
    def _judging(self) -> Iterator[None]:
        try:
            yield
        except Violation as violation:
            self._wrong.append(str(violation))
            self.trace.note("violation", "", violation)

    # The workers.

    async def _supervise(self, number: int) -> None:
        """Keep one worker running; what ended it must be a fault that was drawn."""
        for incarnation in range(10_000):
            process = Process(name=f"{number}.{incarnation}", loop=self._loop)
            self._processes.append(process)
            stopping, over = asyncio.Event(), self._loop.create_future()
            worker_id = ids.mint_id("worker", self._clock.now())
            hand = Hand(process=process, worker_id=worker_id, stopping=stopping, over=over)
            self._hands[process.name] = hand
            self.trace.note("start", process.name)
            worker = self._build(process, worker_id)
            life = self._loop.create_task(worker.run(stopping=stopping, drain=DRAIN), context=context_of(process))
            life.add_done_callback(lambda done, hand=hand: self._ended(hand, done), context=_no_process())
            await over
            await asyncio.sleep(self._rng.uniform(0.1, 2.0))

    def _ended(self, hand: Hand, life: "asyncio.Task[None]") -> None:
        if hand.over.done() or life.cancelled():
            return
        fault = life.exception()
        del self._hands[hand.process.name]
        hand.process.kill()
        self.trace.note("exit", hand.process.name, type(fault).__name__)
        if fault is not None:
            self.oracle.excuse_sent(hand.worker_id)
            zombie = isinstance(fault, BlobMissing) and hand.woke_at > 0  # it went on with what was cleared meanwhile
            if not zombie and not isinstance(fault, _EXPECTED):
                self._wrong.append(f"a worker ended with {fault!r}")
        hand.over.set_result(None)

    def _build(self, process: Process, worker_id: str) -> Worker:
        seam = Seam(process=process, fate=self._fate, nemesis=self)
        database = SeamDatabase(database=self._world.database, seam=seam)
        blobs = SeamBlobs(blobs=self._world.blobs, seam=seam, clock=self._clock, begun=self.begun)
        room = SeamRoom(seam=seam)
        mine: dict[str, Any] = {"database": database, "clock": self._clock, "worker_id": worker_id}
        held: dict[str, Any] = {"blobs": blobs, "lease": LEASE, **mine}
        lease, metrics = Lease(clock=self._clock, seconds=LEASE), Metrics()
        alone = self._workers == 1
        pace = Pace(window=self._rng.choice((2, 4, 8)), alone=alone)
        given = [Lane(backend=SeamBackend(seam=seam, models=MODELS), pace=pace)]
        router = Router([lane.backend for lane in given])
        lanes, feed = Lanes(lanes=given, router=router), Feed()
        validate, run, scout = (Bell(clock=self._clock) for _ in range(3))
        once = self._once
        runner = Runner(
            ledger=Ledger(metrics=metrics, **held),
            database=database,
            blobs=blobs,
            room=room,
            lanes=lanes,
            feed=feed,
            sender=Sender(clock=self._clock, draw=self._rng.random, once=once, unwell=scout, metrics=metrics),
            lease=lease,
            clock=self._clock,
            bell=run,
            bounds=GroupBounds(results=8, most_results=16, most_bytes=4_000),
            metrics=metrics,
            once=once,
        )
        sweeping = Sweeper(database=database, blobs=blobs, room=room, router=router, clock=self._clock)
        learned = (run, validate)
        scouting = Scout(lanes=lanes, router=router, learned=learned, metrics=metrics, **mine)
        sharing = Sharing(lanes=lanes, pending=feed.pending, **mine)
        return Worker(
            **mine,
            lease=lease,
            alone=alone,
            metrics=metrics,
            runner=runner,
            loops=(
                (Validator(room=room, limits=OPEN, accepted=run, **held), validate, 1.5),
                (Finalizer(room=room, **held), Bell(clock=self._clock), 1.5),
                (sweeping, Bell(clock=self._clock), 4.0),
                (scouting, scout, 1.5),
                *([] if alone else [(sharing, Bell(clock=self._clock), 1.0)]),
            ),
        )

    # The clients and the timed faults.

    async def _client(self) -> None:
        """One organisation: a batch, perhaps over a File of before, a cancel, a delete."""
        rng = self._rng
        client = Client(
            organisation_id=f"org_{len(self._clients)}",
            database=self._world.database,
            blobs=self._world.blobs,
            clock=self._clock,
        )
        self._clients.append(client)
        await client.join()
        steering: list[asyncio.Task[None]] = []
        for _ in range(rng.choice((1, 1, 2))):
            await asyncio.sleep(rng.uniform(0.0, 5.0))
            lines = rng.choice((1, 3, 10, 25, 50))
            valid = rng.random() < 0.9
            content, ids_ = an_input(rng.getrandbits(32), len(self.oracle.batches), lines, valid=valid)
            file = await client.upload(content)
            window = rng.randint(2, 40) if rng.random() < 0.25 else 3_600
            batch_id = await client.create(file, window=window)
            account = Account(
                organisation_id=client.organisation_id,
                lines=[Line(batch_id="", index=i, custom_id=custom_id) for i, custom_id in enumerate(ids_)],
                valid=valid,
                expires_at=int(self._clock.now()) + window,
            )
            self.oracle.add(batch_id, account)
            self.trace.note("create", "", f"{batch_id} lines={lines} valid={valid} window={window}")
            self.committed()
            if self._steers:
                steering.append(asyncio.create_task(self._steer(client, batch_id)))
            if rng.random() < 0.3:
                await asyncio.sleep(rng.uniform(0.0, 10.0))
                self.trace.note("delete", "", await client.delete(file.object.id))
            if rng.random() < 0.4:
                await self._until_status(batch_id, rng.choice(_CANCELLED_IN))
                await asyncio.sleep(rng.choice((0.0, 0.1, 5.0)) * rng.random())
                self.trace.note("cancel", "", f"{batch_id} {await client.cancel(batch_id)}")
                self.committed()
                if "stop" in self._timed and rng.random() < 0.5:
                    self._strike("stop")  # whoever holds a closing batch's Slices must not come back with Results
        for each in steering:
            await each

    async def _steer(self, client: Client, batch_id: str) -> None:
        """Change a batch's priority and window now and then; pause it, let it go on, or leave it paused to its end."""
        rng = self._steering

        async def change(kind: str, how: Callable[[Transaction, Batch], bool]) -> None:
            self.trace.note(kind, "", f"{batch_id} {await client.steer(batch_id, how)}")
            self.committed()

        def window(seconds: int) -> Callable[[Transaction, Batch], bool]:
            return partial(set_window, window="1h", expires_at=int(self._clock.now()) + seconds)

        for _ in range(rng.choice((1, 1, 3))):
            await asyncio.sleep(rng.uniform(0.0, 6.0))
            await change("priority", partial(set_priority, priority=rng.randint(-2, 2)))
            if rng.random() < 0.3:
                await change("window", window(rng.choice((5, 30, 4_000))))
            await change("pause", partial(pause, now=int(self._clock.now())))
            await asyncio.sleep(rng.choice((0.2, 2.0, 15.0)) * rng.random())
            if rng.random() < 0.8:
                await change("resume", resume)
        await asyncio.sleep(max(0.0, self._faults_end - self._loop.time()))  # no clock jumps back any more
        if rng.random() < 0.5:
            await change("window", window(4_000))
            await change("resume", resume)
        else:
            await change("window", window(5))

    async def _until_status(self, batch_id: str, status: Status) -> None:
        """Return when somebody works on a batch in this status, at the latest after a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(15.0):
                while not self._is_worked_on(batch_id, status):
                    self._commit = self._loop.create_future() if self._commit.done() else self._commit
                    await asyncio.shield(self._commit)

    def _is_worked_on(self, batch_id: str, status: Status) -> bool:
        seen = self.oracle.batches[batch_id].seen
        if seen is None:  # a violation has cut the oracle's look short
            return False
        return seen["status"] == status and (status is Status.IN_PROGRESS or seen["owner"] is not None)

    async def _nemesis(self) -> None:
        """Let the timed faults happen, and end."""
        rng = self._rng
        while self._timed and self._loop.time() < self._faults_end:
            await asyncio.sleep(rng.uniform(0.5, 4.0))
            kind = rng.choice(self._timed)
            match kind:
                case "outage":
                    self.trace.note("outage")
                    self._fate.outage = True
                    await asyncio.sleep(rng.uniform(0.5, 5.0))
                    self._fate.outage = False
                case "disk":
                    self._fate.disk_full = True
                    await asyncio.sleep(rng.uniform(0.5, 5.0))
                    self._fate.disk_full = False
                case "clock":
                    step = rng.choice((-600.0, -5.0, -0.5, 0.5, 5.0, 30.0))
                    self.trace.note("clock back" if step < 0 else "clock forward", "", step)
                    self._clock.skew += step
                case _:
                    self._strike(kind)
        await asyncio.sleep(max(0.0, self._faults_end - self._loop.time()))
        self._fate.active = False
        self.trace.note("faults end")

    def _strike(self, kind: str) -> None:
        awake = [hand for hand in self._hands.values() if not hand.process.frozen]
        if not awake:
            return
        hand = self._rng.choice(awake)
        match kind:
            case "kill":
                self.kill(hand.process, "anywhere")
            case "stop":
                self.stop(hand.process, "anywhere")
            case _:
                self.trace.note("term", hand.process.name)
                hand.stopping.set()

    async def run(self) -> None:
        """Run to quiescence and look at everything."""
        clients = [asyncio.create_task(self._client()) for _ in range(self._rng.randint(1, 3))]
        workers = [asyncio.create_task(self._supervise(number)) for number in range(self._workers)]
        nemesis = asyncio.create_task(self._nemesis())
        for ending in (*clients, nemesis):
            await ending
        end = self._loop.time() + STUCK_SECONDS
        while not self._wrong and not self.oracle.is_quiet():
            hold(self._loop.time() < end, f"stuck: {self.oracle.statuses()}")
            hold(not any(worker.done() for worker in workers), "the simulator's own supervisor ended")
            await asyncio.sleep(0.5)
        hold(not self._wrong, "; ".join(self._wrong[:3]))
        for hand in list(self._hands.values()):
            hand.process.kill()  # what it holds in memory has no say any more
        await self._check()

    async def _check(self) -> None:
        oracle, sweeper = self.oracle, self._last_sweeper()
        oracle.check_sends()
        clients = {client.organisation_id: client for client in self._clients}
        for batch_id, account in oracle.batches.items():
            assert account.seen is not None
            client = clients[account.organisation_id]
            output = await client.read(account.seen["output_file_id"])
            error = await client.read(account.seen["error_file_id"])
            oracle.check_files(batch_id, output, error)
            self.trace.note(f"ended {account.seen['status']}", "", f"{len(output)} {len(error)}")
        self._clock.skew = max(self._clock.skew, 0.0)
        self._loop.skip(_GARBAGE_SECONDS)
        for _ in range(3):
            await sweeper.step()
        oracle.check_blobs()

    def _last_sweeper(self) -> Sweeper:
        """Return a Sweeper to which no fault happens."""
        process = Process(name="last", loop=self._loop)
        seam = Seam(process=process, fate=self._fate, nemesis=self)
        blobs = SeamBlobs(blobs=self._world.blobs, seam=seam, clock=self._clock, begun=self.begun)
        room, router = SeamRoom(seam=seam), Router([])
        return Sweeper(database=self._world.database, blobs=blobs, room=room, router=router, clock=self._clock)

    async def tear_down(self) -> None:
        """Cancel all that is left, the dead included, so that nothing of this seed is in the next."""
        self._fate.active = False
        for process in self._processes:
            process.revive()
        me = asyncio.current_task()
        for _ in range(50):
            left = [task for task in asyncio.all_tasks() if task is not me]
            if not left:
                break
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=0.001)
        for writer in self.begun.writers:
            writer.discard()
        self.oracle.close()


def an_input(seed: int, number: int, lines: int, *, valid: bool) -> tuple[bytes, list[str]]:
    """Return an input File, with a bad line in it unless it is valid, and its custom_ids."""
    rng = random.Random(seed)  # noqa: S311 - drawn again from the same seed
    texts, names = [], []
    model = rng.choice(MODELS)
    for index in range(lines):
        if rng.random() < 0.25:
            model = rng.choice(MODELS)
        names.append(f"b{number}-{index}")
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        texts.append(json.dumps({"custom_id": names[-1], "method": "POST", "url": CHAT, "body": body}))
    if not valid:
        texts[rng.randrange(lines)] = "{"
    return "\n".join(texts).encode() + b"\n", names


def _no_process() -> Context:
    """Return an empty context: its callbacks are nobody's."""
    return Context()
