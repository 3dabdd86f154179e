"""What goes wrong, and when: one seed makes a list of faults, which are then inflicted on the processes of a run."""

import heapq
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from faults.fleet import Backend, Fleet, Slot
from faults.ground import Ground, LetGo, Rows
from faults.launcher import LEASE

_STOP_LEASES = 1.6  # so long a stopped worker sleeps: its leases have lapsed when it wakes
_LONG_STOP_LEASES = 3.0  # or so long: what it held has been taken over, and may be closed and sealed
_DEATHS = 3
_AIM_SECONDS = 6.0  # after which a fault that waits for a state takes whom it finds
_DRAIN_SECONDS = 5.0  # a worker that was told to end and has not by then is killed
_STEP_SECONDS = 0.002
_LOOK_SECONDS = 0.02
_START_SECONDS = 30.0
_TRUCE_SECONDS = 12.0  # after a trouble, until work has gone on: so long it may take, and is then found to be too long
_SIGNS = 5
_PROGRESS = "SELECT (SELECT count(*) FROM trail_done) + (SELECT count(*) FROM trail_status WHERE old IS NOT NULL)"
_OUTAGES = ("503", "refuse", "hang")


class Kind(StrEnum):
    """What is inflicted."""

    KILL = "kill"
    STOP = "stop"
    TERM = "term"
    API_KILL = "api kill"
    OUTAGE = "outage"  # of the model server
    TROUBLE = "trouble"  # of the rows or the bytes


WORKER_FAULTS = (Kind.KILL, Kind.STOP, Kind.TERM)
# States that pass too fast to be hit by chance; a fault that is aimed at one waits until a worker holds it.
AIMS = ("validating", "finalizing", "cancelling")
RECORDING = "recording"  # a group commit is under way
# A stop that is aimed finds its worker waiting for the database, so that a write comes too late when it wakes.
_LOCK_SECONDS = 0.4  # longer than a group waits for its commit, or a small batch for its seal


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong `at` seconds after the storm began."""

    at: float
    kind: Kind
    target: int = 0  # which of the workers that run then
    aim: str | None = None
    mode: str = ""  # of an outage or a trouble
    seconds: float = 0.0  # that it lasts, or a stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Inflicted:
    """A fault as it happened: to which worker, and what that was doing. Times on CLOCK_MONOTONIC."""

    kind: Kind
    at: float
    until: float | None = None  # when a stopped worker went on, an outage or a trouble was over
    mode: str = ""
    worker: str | None = None
    states: frozenset[str] = frozenset()  # of the batches that it held


def make_schedule(
    seed: int,
    *,
    seconds: float,
    faults: int,
    outages: int,
    stale: int = 0,
    lease: float = LEASE,
    troubles: Mapping[str, float] = MappingProxyType({}),
) -> list[Fault]:
    """Return that many faults on workers, some on the API and that many outages, over this time, in order.

    Each of the `troubles` comes once, for so many seconds, and none while another lasts.

    `stale` stops of workers in the middle of a group commit come on top; each goes on, with that write, as soon as a
    later owner has recorded something of the same Slice.
    """
    draw = random.Random(seed)  # noqa: S311 - it must be the same again
    found: list[Fault] = []
    for _ in range(faults):
        kind = draw.choices(WORKER_FAULTS, weights=(60, 25, 15))[0]
        aim = draw.choice(AIMS) if draw.random() < 0.25 else None
        leases = draw.choice((_STOP_LEASES, _LONG_STOP_LEASES)) if aim is not None else _STOP_LEASES
        found.append(
            Fault(
                at=draw.uniform(0, seconds),
                kind=kind,
                target=draw.randrange(1 << 16),
                aim=aim,
                seconds=leases * lease,
            )
        )
    found += [Fault(at=draw.uniform(0, seconds), kind=Kind.API_KILL) for _ in range(max(1, round(seconds / 8)))]
    for number in range(outages - 1):
        at = (number + draw.random()) * seconds / outages  # one in each part, so that they do not run into each other
        mode = _OUTAGES[number % len(_OUTAGES)]
        found.append(Fault(at=at, kind=Kind.OUTAGE, mode=mode, seconds=draw.uniform(2.0, 4.0)))
    for number in range(stale):
        at = (number + draw.random()) * seconds / stale  # one in each part: the database's lock is held for each
        target = draw.randrange(1 << 16)
        found.append(Fault(at=at, kind=Kind.STOP, target=target, aim=RECORDING, seconds=_LONG_STOP_LEASES * lease))
    names = draw.sample(sorted(troubles), len(troubles))
    for number, name in enumerate(names):
        at = (number + draw.uniform(0, 0.25)) * seconds / len(names)
        found.append(Fault(at=at, kind=Kind.TROUBLE, mode=name, seconds=troubles[name]))
    if not outages:
        return sorted(found, key=lambda fault: fault.at)
    # The last one outlives the storm: nobody is started afresh any more, so each worker must find back by itself.
    found.append(Fault(at=seconds, kind=Kind.OUTAGE, mode=draw.choice(_OUTAGES), seconds=2.5))
    return sorted(found, key=lambda fault: fault.at)


_Held = Mapping[tuple[str, int], tuple[int, bytes]]  # Slices (batch and ordinal): the epoch and what is done


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stopped:
    """A stopped worker's process, and until when; sooner, if another overtakes it in what it held."""

    slot: Slot
    pid: int | None
    until: float
    held: _Held
    place: int  # in the list of what was inflicted
    let_go: LetGo | None  # what holds its writes back until it goes on


@dataclass(slots=True)
class Nemesis:
    """Inflicts a schedule, and writes down what it did."""

    fleet: Fleet
    backend: Backend
    ground: Ground
    inflicted: list[Inflicted] = field(default_factory=list)
    unled: int = 0  # workers that did not end within their drain, and were killed
    _later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _armed: list[tuple[float, Fault]] = field(default_factory=list)
    _counted: int = 0
    _troubled: bool = False
    _truce: float = 0.0  # until then no new fault
    _signs: int | None = None
    _looked: float = 0.0

    def storm(self, schedule: Sequence[Fault], *, seconds: float) -> None:
        """Inflict all of it, over at least so long."""
        begin = begun = last = time.monotonic()
        due = list(reversed(schedule))
        with closing(self.ground.rows()) as rows:
            while due or self._later or self._armed or time.monotonic() < begin + seconds:
                now = time.monotonic()
                if self.ground.away or self._is_truce(rows, now):
                    # The storm's clock stands: nobody can say what workers hold, or they are to show that they go on.
                    begin, begun = begin + now - last, now
                elif due and now >= begin + due[-1].at:
                    if len(self.fleet.begun) > 1:
                        self._begin(due.pop(), rows)
                        begun = now
                    elif now < begun + _START_SECONDS:
                        begin += _STEP_SECONDS  # on a busy machine the storm takes longer: nobody is there to be hit
                    else:
                        raise RuntimeError("the workers do not begin: their log says why")
                while self._later and now >= self._later[0][0]:
                    heapq.heappop(self._later)[2]()
                if self._armed and not self.ground.away and now >= self._truce:
                    self._aim(rows, now)
                last = now
                self.fleet.keep()
                time.sleep(_STEP_SECONDS)

    def _at(self, at: float, call: Callable[[], None]) -> None:
        self._counted += 1
        heapq.heappush(self._later, (at, self._counted, call))

    def _begin(self, fault: Fault, rows: Rows) -> None:
        now = time.monotonic()
        if fault.kind is Kind.OUTAGE:
            self.backend.tell(fault.mode)
            self._at(now + fault.seconds, lambda: self.backend.tell("ok"))
            self.inflicted.append(Inflicted(kind=fault.kind, at=now, until=now + fault.seconds, mode=fault.mode))
        elif fault.kind is Kind.TROUBLE:
            self._trouble(fault)
        elif fault.kind is Kind.API_KILL:
            self.fleet.end(self.fleet.api, signal.SIGKILL)
            self.inflicted.append(Inflicted(kind=fault.kind, at=now))
        elif fault.aim == RECORDING:
            self._hold_up(fault, None, rows)
        elif fault.aim is not None:
            self._armed.append((now + _AIM_SECONDS, fault))
        else:
            self._strike(fault, None, rows)

    def _trouble(self, fault: Fault) -> None:
        at, place = time.monotonic(), len(self.inflicted)
        if self._troubled or at < self._truce:  # one after the other: what each one costs is measured
            self._at(at + _LOOK_SECONDS, lambda: self._trouble(fault))
            return
        self._troubled = True
        end = self.ground.begin(fault.mode)
        self.inflicted.append(Inflicted(kind=fault.kind, at=at, mode=fault.mode))

        def over() -> None:
            end()
            now = time.monotonic()
            self.inflicted[place] = replace(self.inflicted[place], until=now)
            self._troubled = False
            self._truce, self._signs = now + _TRUCE_SECONDS, None

        self._at(at + fault.seconds, over)

    def _is_truce(self, rows: Rows, now: float) -> bool:
        """Say whether a trouble is just over, and nothing has gone on since."""
        if now >= self._truce or now < self._looked + _LOOK_SECONDS:
            return now < self._truce
        self._looked = now
        ((signs,),) = rows.all(_PROGRESS)
        self._signs = signs if self._signs is None else self._signs
        if signs >= self._signs + _SIGNS:
            self._truce = 0.0
        return bool(self._truce)

    def _aim(self, rows: Rows, now: float) -> None:
        """Strike the holder of a batch in the state that a fault waits for, or anyone once it has waited enough."""
        # Five deaths in a row would make a batch wait for the next start: that is not what an aim is for.
        sql = f"SELECT status, owner FROM batch WHERE owner IS NOT NULL AND crashes < {_DEATHS}"  # noqa: S608 - a number
        held = rows.all(sql)
        for entry in list(self._armed):
            until, fault = entry
            slot = next((s for state, o in held if state == fault.aim and (s := self.fleet.slot_of(o))), None)
            if slot is not None or now >= until:
                self._armed.remove(entry)
                (self._hold_up if fault.kind is Kind.STOP else self._strike)(fault, slot, rows)

    def _hold_up(self, fault: Fault, slot: Slot | None, rows: Rows) -> None:
        """Let a worker's writes wait for a while, then strike; without a slot those of one that has Slices."""
        target = None if self.ground.away else slot or self._holder(fault, rows) or next(iter(self.fleet.begun), None)
        let_go = None if target is None else self.ground.hold(target.name)
        if let_go is None:
            self._at(time.monotonic() + _LOOK_SECONDS, lambda: self._hold_up(fault, slot, rows))
            return
        self._at(time.monotonic() + _LOCK_SECONDS, lambda: self._strike(fault, target, rows, let_go))

    def _holder(self, fault: Fault, rows: Rows) -> Slot | None:
        sql = "SELECT DISTINCT slice.owner FROM slice JOIN batch ON id = batch_id WHERE status = 'in_progress'"
        slots = [slot for (owner,) in rows.all(sql) if owner and (slot := self.fleet.slot_of(owner))]
        return slots[fault.target % len(slots)] if slots else None

    def _strike(self, fault: Fault, slot: Slot | None, rows: Rows, let_go: LetGo | None = None) -> None:
        running = self.fleet.begun
        if slot is None or slot not in running or self.ground.away:
            if let_go is not None:  # the one that is held has ended: another is as good
                let_go()
                let_go = None
            if not running or self.ground.away:
                self._at(time.monotonic() + _LOOK_SECONDS, lambda: self._strike(fault, None, rows))
                return
            slot = running[fault.target % len(running)]
        now = time.monotonic()
        worker = self.fleet.worker_id(slot)
        if fault.kind is Kind.STOP:
            held = _held(rows, worker) if fault.aim == RECORDING else {}
            self.fleet.signal(slot, signal.SIGSTOP)
            slot.stopped = True
            if let_go is not None and not self.ground.holds_on:
                let_go()
                let_go = None
            stopped = _Stopped(
                slot=slot,
                pid=slot.pid,
                until=now + fault.seconds,
                held=held,
                place=len(self.inflicted),
                let_go=let_go,
            )
            self._at(now, lambda: self._wait(stopped, rows))
        elif fault.kind is Kind.TERM:
            self.fleet.end(slot, signal.SIGTERM)
            self._at(now + _DRAIN_SECONDS, lambda pid=slot.pid: self._give_up(slot, pid))  # type: ignore[misc]
        else:
            self.fleet.end(slot, signal.SIGKILL)
        until = now + fault.seconds if fault.kind is Kind.STOP else None
        self.inflicted.append(
            Inflicted(kind=fault.kind, at=now, until=until, worker=worker, states=_states(rows, worker))
        )
        if fault.kind is not Kind.STOP:
            slot.stopped = True  # no target any more

    def _wait(self, stopped: _Stopped, rows: Rows) -> None:
        """Let a stopped worker go on at its time, or once someone else has recorded something of what it held."""
        now, slot = time.monotonic(), stopped.slot
        if slot.pid == stopped.pid and now < stopped.until and not self._is_overtaken(rows, stopped.held):
            at = now + _LOOK_SECONDS if stopped.held else stopped.until
            self._at(min(at, stopped.until), lambda: self._wait(stopped, rows))
            return
        if stopped.let_go is not None:
            stopped.let_go()
        if slot.pid != stopped.pid:
            return
        self.inflicted[stopped.place] = replace(self.inflicted[stopped.place], until=now)
        slot.stopped = False
        self.fleet.signal(slot, signal.SIGCONT)

    def _is_overtaken(self, rows: Rows, held: _Held) -> bool:
        """Say whether a later claim of one of these Slices has recorded something."""
        sql = "SELECT 1 FROM slice WHERE batch_id = :batch AND ordinal = :at AND epoch > :epoch AND done != :done"
        return not self.ground.away and any(
            rows.all(sql, batch=batch, at=at, epoch=epoch, done=done) for (batch, at), (epoch, done) in held.items()
        )

    def _give_up(self, slot: Slot, pid: int | None) -> None:
        if slot.pid == pid and pid is not None:
            self.unled += 1
            self.fleet.end(slot, signal.SIGKILL)


def _states(rows: Rows, worker: str | None) -> frozenset[str]:
    """Return the states of the batches that a worker holds, in whole or a Slice of them."""
    sql = (
        "SELECT status FROM batch WHERE owner = :worker AND status != 'in_progress' UNION"
        " SELECT status FROM slice JOIN batch ON batch.id = batch_id"
        " WHERE slice.owner = :worker AND status = 'in_progress'"
    )
    return frozenset(status for (status,) in rows.all(sql, worker=worker))


def _held(rows: Rows, worker: str | None) -> _Held:
    """Return the Slices that a worker holds."""
    sql = "SELECT batch_id, ordinal, epoch, done FROM slice WHERE owner = :worker"
    return {(batch, ordinal): (epoch, done) for batch, ordinal, epoch, done in rows.all(sql, worker=worker)}
