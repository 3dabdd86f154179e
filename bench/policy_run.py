"""Runs the product's own scheduling (order, placement, Pace) against simulated engines, in virtual time."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

import engine_model as model
from suites import Line

from batchmill.schedule.pace import Pace
from batchmill.schedule.retry import Done
from batchmill.schedule.window import Gauges

TURNAROUND = 0.001  # seconds from an answer to the arrival of what is sent for it
POLL = 1.0  # seconds between two looks at an engine's gauges

Taken = tuple[Line, int]  # a line, and the tokens of its prompt that are expected to be computed
Take = Callable[[int], Taken | None]  # the next line for an engine, None when there is none for it
_GOOD = Done(succeeded=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An engine becomes another one at a moment."""

    at: float
    profile: model.Profile


@dataclass(slots=True, kw_only=True)
class Run:
    """What came of a batch."""

    makespan: float
    engines: list[model.Engine]
    paces: list[Pace]
    visitors: list[model.Sequence]  # requests of others, answered

    @property
    def computed(self) -> int:
        """Tokens computed for the batch, those computed anew included (with visitors: theirs, too)."""
        return sum(engine.prefilled + engine.generated for engine in self.engines)

    def first_token_p(self, part: float) -> float:
        """Return a percentile of the others' seconds to the first token."""
        waits = sorted(visitor.first_token_at - visitor.arrived_at for visitor in self.visitors)
        return waits[min(len(waits) - 1, int(part * len(waits)))]


@dataclass(slots=True, kw_only=True)
class PolicyRun:
    """One batch on engines.

    Args:
        take: Order and placement: hands out the lines.
        ended: Hears of each line that an engine has answered.
        paces: One for each engine.
        shows_gauges: Whether `/metrics` can be read.
        tells_prompts: Whether the paces hear of prompts' tokens; without, nothing is paced.
        visitors: Requests of others for the first engine, with the moments when they come.
        changes: What becomes of the first engine.
    """

    take: Take
    paces: Sequence[Pace]
    engines: Sequence[model.Engine]
    ended: Callable[[int], None] = lambda _: None
    shows_gauges: bool = False
    tells_prompts: bool = True
    visitors: Sequence[tuple[float, model.Sequence]] = ()
    changes: Sequence[Change] = ()
    _sent: dict[model.Sequence, tuple[float, int]] = field(default_factory=dict)
    _visited: list[model.Sequence] = field(default_factory=list)
    _ended: float = 0.0

    def run(self) -> Run:
        """Run until nothing is left."""
        for at, visitor in self.visitors:
            self.engines[0].submit(visitor, at)
        changes = list(self.changes)
        polls = [POLL if self.shows_gauges else inf for _ in self.engines]
        heap: list[tuple[float, int]] = [(0.0, each) for each in range(len(self.engines))]
        finished: list[list[model.Sequence]] = [[] for _ in self.engines]
        while heap:
            now, at = heapq.heappop(heap)
            engine, pace = self.engines[at], self.paces[at]
            self._answer(at, finished[at], now)
            if now >= polls[at]:
                polls[at] = now + POLL
                seen = engine.gauges()
                pace.gauged(Gauges(seen.waiting, seen.running, seen.kv), now)
            if at == 0 and changes and now >= changes[0].at:
                engine.resize(changes.pop(0).profile)
            dry = self._send(at, now)
            if dry and not pace.in_flight:
                continue
            opens_at = None if dry else pace.opens_at(now)
            until = polls[at] if opens_at is None else min(polls[at], max(opens_at, now + 1e-4))
            if at == 0 and changes:
                until = min(until, changes[0].at)
            finished[at] = engine.run(until)
            heapq.heappush(heap, (engine.clock, at))
        return Run(makespan=self._ended, engines=list(self.engines), paces=list(self.paces), visitors=self._visited)

    def _answer(self, at: int, finished: list[model.Sequence], now: float) -> None:
        for sequence in finished:
            if sequence.tag is None:
                self._visited.append(sequence)
                continue
            sent_at, prefill = self._sent.pop(sequence)
            self.ended(at)
            self.paces[at].answered(_GOOD, now, sent_at, work=sequence.output, prefill=prefill)
            self._ended = now

    def _send(self, at: int, now: float) -> bool:
        """Send what the pace allows; return whether there is nothing left to send."""
        engine, pace = self.engines[at], self.paces[at]
        while pace.may_send(now):
            taken = self.take(at)
            if taken is None:
                return True
            line, prefill = taken[0], taken[1] if self.tells_prompts else 0
            pace.sent(now, prefill=prefill)
            sequence = line.sequence()
            self._sent[sequence] = (now, prefill)
            engine.submit(sequence, now + TURNAROUND)
        return False
