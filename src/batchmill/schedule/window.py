"""How many requests a Backend has in flight at once: found while they are answered, with nothing configured.

    GROW ── the last step brought nothing, or the engine queues ──► HOLD ── every few windows ──► PROBE
      ▲                                                              │ ▲                           │ │
      ├──────────── the backend has become larger (rise) ────────────┘ └─── it brought nothing ────┘ │
      └──────────────────────────────── it brought something ────────────────────────────────────────┘
    HOLD ── much less is delivered ──► PROBE of a smaller size, which is kept if it costs nothing
    any ── a 429, and no gauges ──► CAREFUL: half, then a little more with each window of successes

The measure is work delivered a second, over a window of answers to what was sent at the present size: by Little's law
(requests in flight x work of a request / seconds of a request), or as it arrives. A long request weighs as much as the
work it brings, so outputs of uneven length make little noise. Latency alone says nothing here (the output's length sets
it), nor does a missing 429 (vLLM queues without one).

Where the engine shows its gauges they lead. An engine that is ours alone is filled until a few requests wait in it.
One that others use, too, is judged by gain, in smaller steps, and nothing is to wait in it. Without gauges it is gain
that decides, and a window that is too large costs no throughput while one that is too small does: so it is the former.

Several workers may share one window. Then each of them only measures, in rounds: a round is what was sent since the
window was last judged. One of them judges the sum of the measures of the present round; the others follow it.

The figures are from bench/makespan.py. Times are seconds of any one clock that does not step back.
"""

from collections.abc import Sequence
from enum import Enum, auto
from math import inf
from typing import NamedTuple

from batchmill.schedule.measure import Measure, Meter, sum_up

FULL = 0.9  # of the size in flight on average: below, something else is the limit
NEARLY_FULL = 0.6  # the same, for a clear gain: the step may still be on its way
LEAST_ANSWERS = 8  # to judge a first step by; a window of them where that is more

STEP = 2.0  # times the size
SMALL_STEP = 1.5  # where others use the engine, from where a step brought less than MUCH
MUCH = 1.5  # times the throughput before
GAIN = 1.03  # times the throughput before: a step is kept
CLEAR_GAIN = 1.2  # the same, on a first measure, which is made while the step is on its way
POLITE_GAIN = 1.18  # the same, where others matter more
LITTLE_GAIN = 1.08  # a doubling that brought less was too large
ROOM = 0.75  # of it is kept
SHARED_ROOM = 0.85  # of what runs where others waited

PROBE_EVERY = 3  # windows of answers
PROBE_SELDOM = 24  # the same, where others use the engine and have waited, or probes have brought nothing
PROBE = 1.25  # times the size
PROBE_GAIN = 1.08  # times the throughput before: a probe is followed
DROP = 0.75  # times the throughput before: the backend has become smaller
RISE = 1.28  # times the throughput before: it has become larger
SPARE = 1.5  # times what a smaller backend seems to need

ALONE = 0.5  # requests of others on average: up to here the engine is ours
QUEUE = (2, 16)  # requests to wait inside an engine that is ours: a sixteenth of the window, within these
KV_FULL = 0.95  # of the engine's cache, and requests wait: less, or it throws out what it has begun
KV_RELIEF = 0.97  # times the window, with each such look
KV_ROOM = 0.85  # of the cache: below, it may grow again

HALVING_PAUSE = 1.0  # seconds: the 429s of one burst count as one


class Gauges(NamedTuple):
    """What an engine says of itself: requests waiting and running, and how much of its KV cache is used (0 to 1).

    `apart`: each of those that run has a cache of its own, and finds nothing in the others'.
    """

    waiting: float
    running: float
    kv: float = 0.0
    apart: bool = False


class _Phase(Enum):
    GROW = auto()
    HOLD = auto()
    PROBE = auto()
    CAREFUL = auto()


class Window:
    """The window of one Backend. Not shared between threads.

    Args:
        most: The most requests in flight, whatever they gain.
        start: Where it begins. With `start == most` nothing is sought: only pressure changes the size.
        polite: Stay where others hardly feel it, at some cost of throughput.
    """

    def __init__(self, *, most: int, start: int, polite: bool = False) -> None:
        self.size = min(start, most)
        self._most = most
        self._polite = polite
        self._phase = _Phase.GROW if start < most else _Phase.CAREFUL
        self._is_sought = start < most
        self._meter: Meter | None = None
        self.round = 0  # counts the measures that were begun
        self._is_joint = self._follows = False
        self._before = self.size  # the size that a step or a probe is measured against
        self._throughput = 0.0  # at that size; 0 while unknown
        self._gained = inf  # times the throughput before, that the last step brought
        self._is_again = False  # whether the step's first measure was not clear
        self._held = 0  # windows since the last probe
        self._probe_every = PROBE_SELDOM if polite else PROBE_EVERY
        self._changed = 0  # windows in a row with much less throughput, or much more
        self._others: float | None = None  # requests of others in the engine, on average; None without gauges
        self._queued = 0  # looks at the gauges in a row that saw requests wait
        self._successes = 0
        self._halved_at = -inf

    def moved(self, now: float, in_flight: int) -> None:
        """Learn that so many were in flight until now."""
        meter = self._meter or self._begin(now)
        meter.area += (now - meter.moved_at) * in_flight
        meter.moved_at = now

    def answered(self, *, sent_at: float, now: float, work: float) -> None:
        """Learn from a success, after `moved`; `work` in any one unit (tokens, bytes, else 1)."""
        if self._phase is _Phase.CAREFUL and not self._is_joint:
            self._successes += 1
            if self._successes >= self.size:
                self._grow_carefully()
            return
        meter = self._meter or self._begin(now)
        meter.arrived += work
        if sent_at < meter.began_at:
            return
        meter.answers += 1
        meter.work += work
        meter.seconds += now - sent_at
        if not self._is_joint and meter.answers >= self._enough and (self._others is None or meter.looks):
            self._judge(meter, [meter.read(now)])
            self._begin(now)

    def joint(self, is_joint: bool, now: float) -> None:
        """Be shared with other workers from now on, or with none: whoever is alone judges each answer at once."""
        if is_joint != self._is_joint:
            self._is_joint = is_joint
            self._begin(now)

    def follow(self, size: int, round_: int, now: float) -> None:
        """Be as large as another worker says, and measure for it what is sent in this round."""
        self._follows = True
        self._meter = Meter(now, now)
        self._hold(size, 0.0)
        if not self._is_sought:
            self._phase = _Phase.CAREFUL
        self.size = max(1, size)  # of which this worker has a part, so it may be more than is allowed here
        self.round = round_

    def lead(self, size: int, round_: int, now: float) -> None:
        """Judge for all from now on, beginning with the size that the last one said."""
        if self._follows or size != self.size:
            self.follow(size, round_, now)
            self._follows = False
        self.round = round_

    def measure(self, now: float, in_flight: int) -> Measure:
        """Return what has come of the present round here; so many were in flight until now."""
        if self._meter is None:  # nothing was ever sent
            return Measure()
        self.moved(now, in_flight)
        return self._meter.read(now)

    def judge(self, measures: Sequence[Measure], now: float) -> None:
        """Learn what has come of the present round at all workers that share this window, one's own included."""
        meter = self._meter or self._begin(now)
        answers = sum(each.answers for each in measures)
        if self._phase is _Phase.CAREFUL:
            if answers >= self.size < self._most:
                self._grow_carefully()
                self._begin(now)
        elif answers >= self._enough and (self._others is None or meter.looks):
            self._judge(meter, measures)
            self._begin(now)

    def gauged(self, gauges: Gauges | None, now: float, in_flight: int, *, at_most: int = 0) -> None:
        """Learn what the engine says of itself, or that it says nothing; `in_flight` is ours in the same moment.

        Where others told theirs a while ago, as many as `at_most` may be ours by now.
        """
        if gauges is None:
            self._others = None
            self._probe_every = PROBE_EVERY
            return
        others = max(0.0, gauges.waiting + gauges.running - max(in_flight, at_most))
        self._others = others if self._others is None else 0.8 * self._others + 0.2 * others
        if not self._is_sought or self._follows:
            return
        meter = self._meter or self._begin(now)
        if not self._is_joint or in_flight >= FULL * self.size:  # the others take their parts one after the other
            meter.looks += 1
            meter.waiting = min(meter.waiting, gauges.waiting)
            meter.kv = max(meter.kv, gauges.kv)
        self._queued = self._queued + 1 if gauges.waiting >= 1 else 0
        if gauges.kv >= KV_FULL and gauges.waiting >= 1 and not self._is_shared:
            self._hold(round(KV_RELIEF * min(in_flight, self.size)), 0.0)
        elif self._phase is _Phase.GROW and not self._is_shared:
            self._fill_up(gauges, now, in_flight)
        elif self._queued > 1 and self._is_shared and self._phase is not _Phase.CAREFUL:
            self._queued = 0
            self._probe_every = PROBE_SELDOM
            self._hold(round(SHARED_ROOM * (in_flight - gauges.waiting)), 0.0)
            self._begin(now)

    def pressed(self, now: float) -> None:
        """Learn that the Backend refuses for pressure (429)."""
        self._successes = 0
        if now - self._halved_at >= HALVING_PAUSE:
            self._halved_at = now
            self._hold(self.size // 2, 0.0)
            self._begin(now)
        if self._others is None or not self._is_sought:
            self._phase = _Phase.CAREFUL

    def _fill_up(self, gauges: Gauges, now: float, in_flight: int) -> None:
        """Grow from look to look: the first answers may take long, where the longest lines go first."""
        if gauges.waiting < 1 and gauges.kv < KV_ROOM and in_flight >= FULL * self.size:
            self._resize(round(STEP * self.size))
            self._begin(now)

    @property
    def is_alone(self) -> bool:
        """Whether the engine is seen to be used by nobody else."""
        return self._others is not None and self._others <= ALONE

    @property
    def _is_shared(self) -> bool:
        return self._polite or not self.is_alone

    @property
    def _gain(self) -> float:
        return POLITE_GAIN if self._polite else GAIN

    @property
    def _enough(self) -> int:
        """How many answers it takes to judge."""
        if self._phase is _Phase.GROW and not self._is_again:
            return max(self.size // 2, LEAST_ANSWERS)
        return max(self.size * (2 if self._polite else 1), 2 * LEAST_ANSWERS)

    def _begin(self, now: float) -> Meter:
        """Measure anew, only by what is sent from now on."""
        self._meter = Meter(now, now)
        self.round += 1
        return self._meter

    def _grow_carefully(self) -> None:
        self._successes = 0
        self._resize(self.size + max(1, self.size // 16))

    def _judge(self, meter: Meter, measures: Sequence[Measure]) -> None:
        in_flight, throughput = sum_up(measures)
        if self._phase is _Phase.GROW and self._is_shared and not self._is_again and not self._polite:
            if in_flight >= NEARLY_FULL * self.size:
                self._weigh_first(throughput)
        elif in_flight >= FULL * self.size:
            if self._is_shared:
                self._weigh(throughput)
            else:
                self._fill(meter, in_flight)

    def _weigh_first(self, throughput: float) -> None:
        if throughput >= CLEAR_GAIN * self._throughput:
            self._grow(throughput)
        else:
            self._is_again = True

    def _fill(self, meter: Meter, in_flight: float) -> None:
        """Fill an engine that is ours alone until a few requests wait in it."""
        least, most = QUEUE
        target = min(max(self.size // 16, least), most)
        if meter.waiting > 2 * target:
            self._hold(round(in_flight - meter.waiting) + target, 0.0)
        elif meter.waiting >= 1 or meter.kv >= KV_ROOM:
            self._hold(self.size, 0.0)
        else:
            self._hold(self.size + max(1, self.size // 4), 0.0)

    def _weigh(self, throughput: float) -> None:
        """Go on where the last step brought something, and back where it did not."""
        match self._phase:
            case _Phase.GROW:
                self._weigh_step(throughput)
            case _Phase.PROBE:
                self._weigh_probe(throughput)
            case _:
                self._watch(throughput)

    def _weigh_step(self, throughput: float) -> None:
        if not self._is_again:
            self._is_again = True
        elif throughput >= self._gain * self._throughput:
            self._grow(throughput)
        else:
            self._hold(self._step_back(), self._throughput)

    def _step_back(self) -> int:
        """Return where to stay when the last step brought nothing: what it was made from, or near it."""
        if self._others is not None or self._polite:
            return (self._before + 3 * self.size) // 4  # it was a small one, and nobody was seen to wait there
        return round(ROOM * self._before) if self._gained < LITTLE_GAIN else self._before

    def _weigh_probe(self, throughput: float) -> None:
        """Decide whether a probe's size is kept: upwards it must bring something, downwards cost nothing."""
        if self.size > self._before and throughput >= max(PROBE_GAIN, self._gain) * self._throughput:
            self._phase = _Phase.GROW
            self._grow(throughput)
        elif self.size < self._before and throughput * GAIN >= self._throughput:
            self._hold(self.size, throughput)
        else:
            if self._others is not None:
                self._probe_every = min(2 * self._probe_every, PROBE_SELDOM)
            self._hold(self._before, self._throughput)

    def _watch(self, throughput: float) -> None:
        """Hold, notice when the backend has changed, and probe now and then."""
        before = self._throughput or throughput
        if not DROP * before < throughput < RISE * before:
            self._changed += 1
            if self._changed > 1:  # the first was measured while it happened
                self._follow(throughput)
            return
        self._changed = 0
        self._throughput = 0.7 * before + 0.3 * throughput
        self._held += 1
        if self._held >= self._probe_every:
            self._phase = _Phase.PROBE
            self._step(throughput, self.size + max(1, round(self.size * (PROBE - 1))))

    def _follow(self, throughput: float) -> None:
        """Follow a backend that has become smaller or larger."""
        self._probe_every = PROBE_EVERY
        if throughput > self._throughput:
            self._phase = _Phase.GROW
            self._step(throughput, round(STEP * self.size))
        else:
            self._phase = _Phase.PROBE
            self._step(throughput, round(SPARE * self.size * throughput / self._throughput))

    def _grow(self, throughput: float) -> None:
        """Take the next step up: a small one where others would feel it and not much is to be had."""
        is_small = (self._others is not None or self._polite) and throughput < MUCH * self._throughput
        self._step(throughput, round(self.size * (SMALL_STEP if is_small else STEP)))

    def _step(self, throughput: float, size: int) -> None:
        """Take a step, to be measured against the present size."""
        self._gained = throughput / self._throughput if self._throughput else inf
        self._before, self._throughput = self.size, throughput
        self._is_again = False
        self._changed = 0
        self._resize(size)
        if self.size == self._before:
            self._hold(self.size, throughput)

    def _hold(self, size: int, throughput: float) -> None:
        self._phase = _Phase.HOLD
        self._throughput = throughput
        self._held = self._changed = 0
        self._resize(size)

    def _resize(self, size: int) -> None:
        self.size = min(max(1, size), self._most)
