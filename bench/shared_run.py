"""Several workers that share one simulated engine's window, in virtual time: their Paces, and the rows between them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

import engine_model as model
from policy_run import POLL, TURNAROUND, Change
from suites import Line

from batchmill.schedule.pace import Pace
from batchmill.schedule.retry import Done, Later
from batchmill.schedule.share import Part, Total, settle
from batchmill.schedule.window import Gauges

BEAT = 1.0  # seconds between two times that a worker tells its part
LEASE = 15.0  # seconds after which a worker that died is known to be dead
_GOOD = Done(succeeded=True)
_REFUSED = Later(after=1.0, attempt_used=False, pressure=True)
_AWAKE = 0.05  # seconds: what a worker waits for at most, where nothing else is due


@dataclass(slots=True, kw_only=True)
class Hand:
    """A worker: when it comes and goes, and which part of the time it has lines for.

    One that `dies` says nothing at its end: its requests are computed for nobody, and its part is held for a lease.
    """

    pace: Pace
    comes: float = 0.0
    goes: float = inf
    dies: bool = False
    has_lines: Callable[[float], bool] = lambda _now: True
    beat_at: float = 0.0


@dataclass(slots=True, kw_only=True)
class Seen:
    """What was seen at each beat: when, the total, how many were in flight at all, how many workers there were."""

    at: float
    total: int
    in_flight: int
    workers: int
    parts: list[int]


@dataclass(slots=True, kw_only=True)
class SharedRun:
    """One batch on one engine, sent by several workers that find its window together.

    Args:
        lines: What there is to send, in order, for whoever has room.
        hands: The workers.
        engine: Where they send.
        shows_gauges: Whether `/metrics` can be read.
        refuses_above: Requests in the engine from which on it answers with a 429.
        changes: What becomes of the engine.
    """

    lines: Iterable[Line]
    hands: Sequence[Hand]
    engine: model.Engine
    shows_gauges: bool = False
    refuses_above: float = inf
    changes: Sequence[Change] = ()
    seen: list[Seen] = field(default_factory=list)
    makespan: float = 0.0
    answers: list[float] = field(default_factory=list)  # when each came
    refused: int = 0
    _total: Total = field(default_factory=Total)
    _rows: dict[int, Part] = field(default_factory=dict)
    _died_at: dict[int, float] = field(default_factory=dict)
    _rest: Iterator[Line] = field(default_factory=lambda: iter(()))
    _back: list[Line] = field(default_factory=list)  # of those who died: to be sent again
    _dry: bool = False
    _sent: dict[model.Sequence, tuple[int, Line, float]] = field(default_factory=dict)

    def run(self) -> "SharedRun":
        """Run until nothing is left."""
        self._rest = iter(self.lines)
        changes = list(self.changes)
        for number, hand in enumerate(self.hands):
            hand.beat_at = hand.comes + BEAT * number / len(self.hands)
        poll = POLL if self.shows_gauges else inf
        finished: list[model.Sequence] = []
        while not self._dry or self._sent or self._back:
            now = self.engine.clock
            self._answer(finished, now)
            self._leave(now)
            for number, hand in self._here(now):
                if now >= hand.beat_at:
                    hand.beat_at = now + (0.005 if self._beat(number, hand, now) else BEAT)
                self._fill(number, hand, now)
            if now >= poll:
                poll = now + POLL
                self._look(now)
            if changes and now >= changes[0].at:
                self.engine.resize(changes.pop(0).profile)
            due = [poll, now + _AWAKE, *(hand.beat_at for _, hand in self._here(now))]
            finished = self.engine.run(max(min(due), now + 1e-4))
        return self

    def _fill(self, number: int, hand: Hand, now: float) -> None:
        """Send what a worker's pace allows."""
        while hand.has_lines(now) and hand.pace.may_send(now):
            line = self._back.pop() if self._back else next(self._rest, None)
            if line is None:
                self._dry = True
                return
            hand.pace.sent(now, prefill=line.prompt)
            sequence = line.sequence()
            self._sent[sequence] = (number, line, now)
            self.engine.submit(sequence, now + TURNAROUND)

    def _look(self, now: float) -> None:
        told = self.engine.gauges()
        for _, hand in self._here(now):
            if hand.pace.is_busy:
                hand.pace.gauged(Gauges(told.waiting, told.running, told.kv), now)

    def _here(self, now: float) -> list[tuple[int, Hand]]:
        return [(n, hand) for n, hand in enumerate(self.hands) if hand.comes <= now and n not in self._died_at]

    def _beat(self, number: int, hand: Hand, now: float) -> bool:
        """Do what a worker's transaction does; say whether there is more to tell at once."""
        gone = [other for other, at in self._died_at.items() if now >= at + LEASE or not self.hands[other].dies]
        for other in gone:
            self._rows.pop(other, None)
        others = {str(other): part for other, part in self._rows.items() if other != number}
        waiting = 1000 if not self._dry and hand.has_lines(now) else 0
        self._total, self._rows[number], heard = settle(
            self._total,
            worker=str(number),
            mine=hand.pace.part(now, waiting=waiting),
            others=others,
            judged=hand.pace.judged,
            size=hand.pace.start,
        )
        again = hand.pace.hear(heard, now)
        here = [each for _, each in self._here(now)]
        self.seen.append(
            Seen(
                at=now,
                total=self._total.total,
                in_flight=sum(each.pace.in_flight for each in here),
                workers=len(here),
                parts=[each.pace.window for each in here],
            )
        )
        return again

    def _answer(self, finished: Sequence[model.Sequence], now: float) -> None:
        for sequence in finished:
            number, line, sent_at = self._sent.pop(sequence, (-1, None, 0.0))
            if line is None or number in self._died_at:
                continue
            pace = self.hands[number].pace
            pace.answered(_GOOD, now, sent_at, work=sequence.output, prefill=line.prompt)
            self.answers.append(now)
            self.makespan = now
            if len(self._sent) > self.refuses_above:
                self.refused += 1
                pace.sent(now)
                pace.answered(_REFUSED, now, now)

    def _leave(self, now: float) -> None:
        for number, hand in self._here(now):
            if now >= hand.goes and (hand.dies or not hand.pace.in_flight):
                self._died_at[number] = now
                self._back += [line for owner, line, _ in self._sent.values() if owner == number]
                self._sent = {sent: entry for sent, entry in self._sent.items() if entry[0] != number}
            elif now >= hand.goes:
                hand.has_lines = lambda _now: False
