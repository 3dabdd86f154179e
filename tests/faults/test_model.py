"""A model of what must be, beside the real rows and bytes: hypothesis plays clients, workers, crashes and the clock.

CI plays the same games each time; `BATCHMILL_MODEL_EXAMPLES=5000 pytest tests/faults/test_model.py` plays new ones.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from batchmill.backends.router import Router
from batchmill.blobs.space import Boundless
from batchmill.engine.finalizer import Finalizer
from batchmill.engine.loop import Bell
from batchmill.engine.sweeper import Sweeper
from batchmill.engine.validator import Validator
from batchmill.ledger.ledger import Claim, Ledger, Portion
from batchmill.ledger.segment import Result
from batchmill.spec.limits import OPEN
from batchmill.spec.results import result_id, unanswered
from batchmill.spec.states import TRANSITIONS, Event, Status
from batchmill.store.database import Database, Statements, Transaction
from batchmill.store.file import File
from batchmill.store.model import add_models
from batchmill.store.slice import record_done
from batchmill.store.tables import slice_
from batchmill.store.tally import Progress, record_progress
from batchmill.telemetry import Metrics
from faults.client import Client
from faults.oracle import Account, Line, Oracle, hold
from faults.simulation import MODELS, World, an_input
from faults.simulator import a_world
from faults.virtual import VirtualLoop

T = TypeVar("T")

LEASE = 15.0
HANDS = 3
EXAMPLES = os.environ.get("BATCHMILL_MODEL_EXAMPLES")
SETTINGS = settings(
    max_examples=int(EXAMPLES or 150),
    stateful_step_count=80,
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Crash(Exception):  # noqa: N818 - it states what happens
    """The connection breaks in the middle of a transaction."""


class Breaking:
    """A database whose connection breaks before COMMIT, or that waits before a write, when told to."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.breaks = False
        self.writes_until_pause = -1
        self.gate: asyncio.Future[None] | None = None

    async def read(self, statements: Statements[T]) -> T:
        """See `Database`."""
        return await self._database.read(statements)

    async def write(self, statements: Statements[T], *, before: Callable[[], None] | None = None) -> T:
        """See `Database`."""

        def broken(tx: Transaction) -> T:
            statements(tx)
            raise Crash

        if self.writes_until_pause == 0:
            self.gate = asyncio.get_running_loop().create_future()
            await self.gate
        self.writes_until_pause -= 1
        return await self._database.write(broken if self.breaks else statements, before=before)

    async def close(self) -> None:
        """See `Database`."""


class Hand:
    """One worker: its Ledger, what it holds, and a Finalizer that may stand still in the middle."""

    def __init__(self, world: World, number: int) -> None:
        self.database = Breaking(world.database)
        mine: dict[str, Any] = {"blobs": world.blobs, "clock": world.clock, "worker_id": f"w{number}", "lease": LEASE}
        self._lives = (
            Ledger(database=self.database, metrics=Metrics(), **mine | {"worker_id": f"w{number}.{life}"})
            for life in count()
        )
        self.ledger = next(self._lives)
        self.finalizer = Finalizer(database=self.database, room=Boundless(), **mine)
        bell = Bell(clock=world.clock)
        self.validator = Validator(database=self.database, room=Boundless(), limits=OPEN, accepted=bell, **mine)
        self.held: list[tuple[Claim, set[int]]] = []  # with the lines that were done by the time of the claim, or by us
        self.paused: asyncio.Task[bool] | None = None

    def die(self) -> None:
        """Begin anew, as a worker that is started again does: under another id, with nothing in hand."""
        self.held.clear()
        self.ledger = next(self._lives)


class Mill(RuleBasedStateMachine):
    """Plays with one Store. The model: the status of each batch, and which claim of each Slice is the last."""

    world: World

    @initialize()
    def begin(self) -> None:
        """Begin with nothing but known models."""
        self.loop = VirtualLoop()
        self.world.clock.attach(self.loop)
        self.world.empty(self.loop)
        self.oracle = Oracle(self.world.path, self.world.blobs, self.world.clock, once=False)
        self.hands = [Hand(self.world, number) for number in range(HANDS)]
        self.files: list[File] = []
        self.inputs: dict[str, tuple[list[str], bool]] = {}
        self.statuses: dict[str, Status] = {}
        self.latest: dict[tuple[str, int], Claim | None] = {}
        database, blobs, clock = self.world.database, self.world.blobs, self.world.clock
        self.client = Client(organisation_id="org", database=database, blobs=blobs, clock=clock)
        self.sweeper = Sweeper(database=database, blobs=blobs, room=Boundless(), router=Router([]), clock=clock)
        self.do(self.client.join())
        self.do(database.write(lambda tx: add_models(tx, names=MODELS, now=1)))

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        """Run something to its end, and look at what it committed."""
        found = self.loop.run_until_complete(call)
        self.oracle.committed()
        return found

    @rule(seed=st.integers(0, 99), lines=st.integers(1, 12), valid=st.booleans())
    def upload(self, seed: int, lines: int, valid: bool) -> None:
        """Upload a File."""
        self.loop.skip(0.001)
        content, names = an_input(seed, len(self.inputs), lines, valid=valid or seed % 2 == 0)
        file = self.do(self.client.upload(content))
        self.files.append(file)
        self.inputs[file.object.id] = names, valid or seed % 2 == 0

    @precondition(lambda self: self.files)
    @rule(data=st.data(), window=st.sampled_from((20, 3_600)))
    def create(self, data: st.DataObject, window: int) -> None:
        """Create a batch."""
        self.loop.skip(0.001)
        file = data.draw(st.sampled_from(self.files))
        batch_id = self.do(self.client.create(file, window=window))
        names, valid = self.inputs[file.object.id]
        lines = [Line(batch_id=batch_id, index=i, custom_id=name) for i, name in enumerate(names)]
        ends = int(self.world.clock.now()) + window
        self.oracle.add(batch_id, Account(organisation_id="org", lines=lines, valid=valid, expires_at=ends))
        self.statuses[batch_id] = Status.VALIDATING

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Delete a File: once."""
        file = self.files.pop(data.draw(st.integers(0, len(self.files) - 1)))
        assert self.do(self.client.delete(file.object.id))
        assert not self.do(self.client.delete(file.object.id))

    @rule(hand=st.integers(0, HANDS - 1))
    def validate(self, hand: int) -> None:
        """The oldest new batch is accepted or refused."""
        waiting = sorted(b for b, status in self.statuses.items() if status is Status.VALIDATING)
        assert self.do(self.hands[hand].validator.step()) is bool(waiting)
        for batch_id in waiting[:1]:
            valid = self.oracle.batches[batch_id].valid
            self.statuses[batch_id] = Status.IN_PROGRESS if valid else Status.FAILED

    @rule(hand=st.integers(0, HANDS - 1), slices=st.integers(1, 4))
    def claim(self, hand: int, slices: int) -> None:
        """Claim what nobody holds, or whose lease lapsed."""
        for claim in self.do(self.hands[hand].ledger.claim(slices=slices, models=MODELS)):
            name = (claim.slice.batch_id, claim.slice.ordinal)
            before = self.latest.get(name)
            assert before is None or before.slice.epoch < claim.slice.epoch
            assert self.statuses[name[0]] is Status.IN_PROGRESS
            self.latest[name] = claim
            done = {i for i in range(claim.slice.lines) if claim.slice.done[i >> 3] >> (i & 7) & 1}
            self.hands[hand].held.append((claim, done))

    @precondition(lambda self: any(hand.held for hand in self.hands))
    @rule(data=st.data(), breaks=st.booleans(), all_of_it=st.booleans())
    def record(self, data: st.DataObject, breaks: bool, all_of_it: bool) -> None:
        """Commit some Results: of the last claim they stand, of a zombie's they fall, of a crash nothing is left."""
        hand = data.draw(st.sampled_from([hand for hand in self.hands if hand.held]))
        claim, done = data.draw(st.sampled_from(hand.held))
        holes = sorted(set(range(claim.slice.lines)) - done)
        fresh = holes if all_of_it else sorted(data.draw(st.sets(st.sampled_from(holes), min_size=1)))
        name = (claim.slice.batch_id, claim.slice.ordinal)
        hand.database.breaks = breaks
        try:
            fallen = self.do(hand.ledger.commit([self._portion(claim, done, fresh)]))
        except Crash:
            return
        finally:
            hand.database.breaks = False
        assert not breaks
        stands = self.latest[name] is claim
        assert fallen == (frozenset() if stands else frozenset({claim.slice.fence}))
        done |= set(fresh)
        if not stands or len(done) == claim.slice.lines:
            hand.held.remove((claim, done))
            self.latest[name] = None if stands else self.latest[name]
        ((left,),) = self.oracle.query("SELECT open_slices FROM batch WHERE id = ?", name[0])
        if stands and left == 0 and self.statuses[name[0]] is Status.IN_PROGRESS:
            self.statuses[name[0]] = Status.FINALIZING

    def _portion(self, claim: Claim, done: set[int], fresh: list[int]) -> Portion:
        def text(index: int) -> bytes:
            line = self.oracle.planned(claim.slice.batch_id)[claim.slice.first + index]
            line_id = result_id(line.batch_id, line.index + 1)
            return unanswered(line_id, f'"{line.custom_id}"'.encode(), "request_timeout", f"epoch {claim.slice.epoch}")

        bits = sum(1 << index for index in done | set(fresh))
        results = [Result(index=i, succeeded=False, attempts=1, text=text(i)) for i in fresh]
        size, closed = len(claim.slice.done), len(done | set(fresh)) == claim.slice.lines
        return Portion(slice=claim.slice, results=results, done=bits.to_bytes(size, "little"), closed=closed)

    @precondition(lambda self: any(hand.held for hand in self.hands))
    @rule(hand=st.integers(0, HANDS - 1))
    def take_over(self, hand: int) -> None:
        """The leases lapse, and a worker claims what the others held: those are zombies, and do not know."""
        self.loop.skip(LEASE + 1.0)
        self.claim(hand, 4)

    @precondition(lambda self: Status.VALIDATING in self.statuses.values())
    @rule(hand=st.integers(0, HANDS - 1))
    def begin_work(self, hand: int) -> None:
        """A new batch is accepted, and claimed at once."""
        self.validate(hand)
        self.claim(hand, 4)

    @rule(hand=st.integers(0, HANDS - 1))
    def release(self, hand: int) -> None:
        """Give all back: what is another's by now is let alone."""
        held = self.hands[hand].held
        self.do(self.hands[hand].ledger.release([claim.slice for claim, _ in held]))
        held.clear()

    @rule(hand=st.integers(0, HANDS - 1))
    def crash(self, hand: int) -> None:
        """A worker dies: nobody has what it held until the lease lapses."""
        self.hands[hand].die()

    @rule(seconds=st.sampled_from((1.0, LEASE + 1.0, 40.0)))
    def wait(self, seconds: float) -> None:
        """Time passes: leases lapse, windows close."""
        self.loop.skip(seconds)

    @precondition(lambda self: self.statuses)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Cancel what is not final."""
        batch_id = data.draw(st.sampled_from(sorted(self.statuses)))
        target = TRANSITIONS[self.statuses[batch_id]].get(Event.CANCEL)
        assert self.do(self.client.cancel(batch_id)) is (target is not None)
        self.statuses[batch_id] = target or self.statuses[batch_id]

    @rule()
    def sweep(self) -> None:
        """Windows that have passed are closed."""
        self.do(self.sweeper.step())
        for batch_id, status in self.statuses.items():
            late = self.oracle.batches[batch_id].expires_at <= int(self.world.clock.now())
            if late and status in {Status.VALIDATING, Status.IN_PROGRESS}:
                self.statuses[batch_id] = TRANSITIONS[status][Event.WINDOW_PASSED]

    @rule(hand=st.integers(0, HANDS - 1), writes=st.integers(-1, 3))
    def finalize(self, hand: int, writes: int) -> None:
        """Seal a batch, or stand still after so many writes: then another Finalizer may take it over."""
        self.wake(hand)
        mine = self.hands[hand]
        mine.database.writes_until_pause = writes
        sealing = self.loop.create_task(mine.finalizer.step())
        self.do(_until(lambda: sealing.done() or mine.database.gate is not None))
        mine.database.writes_until_pause = -1
        mine.paused = None if sealing.done() else sealing
        if sealing.done():
            sealing.result()
        self._take_down_sealed()

    @rule(hand=st.integers(0, HANDS - 1))
    def wake(self, hand: int) -> None:
        """A Finalizer that stood still goes on, to whatever the fence says."""
        mine = self.hands[hand]
        if mine.paused is not None and mine.database.gate is not None:
            gate, mine.database.gate = mine.database.gate, None
            gate.set_result(None)
            self.do(_until(mine.paused.done))
            mine.paused.result()
            mine.paused = None
            self._take_down_sealed()

    def _take_down_sealed(self) -> None:
        """What was sealed is what it must be; what was fenced has no last claim any more."""
        self.oracle.committed()
        for batch_id, account in self.oracle.batches.items():
            assert account.seen is not None
            was, found = self.statuses[batch_id], Status(account.seen["status"])
            if found is not was:
                whole = account.recorded == account.seen["total"]
                ends = {Status.FINALIZING: Status.COMPLETED if whole else Status.EXPIRED}
                hold(found is ends.get(was, Status.CANCELLED), f"{batch_id}: {was} was sealed as {found}")
                self.statuses[batch_id] = found
        epochs = {(r[0], r[1]): r[2] for r in self.oracle.query("SELECT batch_id, ordinal, epoch FROM slice")}
        for name, claim in self.latest.items():
            if claim is not None and epochs.get(name) != claim.slice.epoch:
                self.latest[name] = None

    @invariant()
    def all_holds(self) -> None:
        """The rows say what the model says, and agree with the bytes."""
        self.oracle.committed()
        assert {b: a.seen and Status(a.seen["status"]) for b, a in self.oracle.batches.items()} == self.statuses
        self.oracle.check_refs()
        self.oracle.check_bitmaps()

    def teardown(self) -> None:
        """Drive everything to its end: each accepted line is once in one file, as it was recorded."""
        if not hasattr(self, "hands"):
            return
        try:
            self._end()
        finally:
            self.oracle.close()
            self.loop.close()

    def _end(self) -> None:
        for number in range(HANDS):
            self.wake(number)
        for _ in range(40 * (1 + len(self.statuses))):
            if self.oracle.is_quiet():
                break
            self._drive()
        hold(self.oracle.is_quiet(), f"stuck: {self.statuses}")
        for batch_id, account in self.oracle.batches.items():
            assert account.seen is not None
            files = [self.do(self.client.read(account.seen[f"{kind}_file_id"])) for kind in ("output", "error")]
            self.oracle.check_files(batch_id, *files)

    def _drive(self) -> None:
        hand = self.hands[0]
        self.loop.skip(LEASE + 1.0)
        self.validate(0)
        self.claim(0, 4)
        for claim, done in hand.held:
            holes = sorted(set(range(claim.slice.lines)) - done)
            self.do(hand.ledger.commit([self._portion(claim, done, holes)]))
        hand.held.clear()
        self.oracle.committed()
        self.statuses = {b: Status(a.seen["status"]) for b, a in self.oracle.batches.items() if a.seen is not None}
        self.sweep()
        self.finalize(0, -1)


async def _until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - time stands still: there is nothing to wait for but turns of the loop
        await asyncio.sleep(0)


def _play(rules: settings = SETTINGS) -> None:
    with a_world() as world:
        machine = type("MillOfThisWorld", (Mill,), {"world": world})
        run_state_machine_as_test(machine, settings=rules)


def test_the_store_and_the_ledger_do_what_the_model_says() -> None:
    """Whatever clients, workers, crashes and the clock do, in whatever order, nothing is lost or doubled."""
    _play()


def _write_whatever_the_epoch(tx: Transaction, *, batch_id: str, ordinal: int, epoch: int, **facts: Any) -> bool:  # noqa: ANN401, ARG001 - as `record_done`
    latest = select(slice_.c.epoch).where(slice_.c.batch_id == batch_id, slice_.c.ordinal == ordinal)
    now = tx.connection.execute(latest).scalar_one()
    return record_done(tx, batch_id=batch_id, ordinal=ordinal, epoch=now, **facts)


def _count_one_less(tx: Transaction, *, failed: int, **facts: Any) -> Progress:  # noqa: ANN401 - as `record_progress`
    return record_progress(tx, failed=max(0, failed - 1), **facts)


@pytest.mark.parametrize(
    ("where", "planted"),
    [
        ("batchmill.ledger.ledger.record_done", _write_whatever_the_epoch),
        ("batchmill.ledger.ledger.record_progress", _count_one_less),
    ],
    ids=["a commit without its fence", "a count that is short"],
)
def test_the_model_finds_what_is_planted(
    monkeypatch: pytest.MonkeyPatch, where: str, planted: Callable[..., object]
) -> None:
    """Each bug breaks what the model says, in the games that CI plays; seals are the simulator's to judge."""
    monkeypatch.setattr(where, planted)
    with pytest.raises((AssertionError, DBAPIError)):
        # Found is enough: nobody needs the shortest game, and it is mostly found in the first few.
        _play(settings(SETTINGS, phases=[Phase.generate], max_examples=10 * SETTINGS.max_examples))
