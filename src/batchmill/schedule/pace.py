"""What a Backend gets now: a window of requests, paced prompts, and a circuit that opens when it is unwell.

    well ── unwell verdict, or ──► open ── probe succeeded ──► half-open ── any other verdict ──► well
            doubts in a row         ▲                              │
                                    └── unwell verdict, or doubt ──┘

A doubt is a failure that the line or the backend may have caused. While other lines succeed it is the line's; when
nothing but doubts comes back, the lines are suspects and go one by one, as the trials of a half-open circuit.

Where several workers send to a Backend, each has a Pace of its own for it, with a part of one window (`share`): what it
has to tell is `part` and `judged`, and `hear` is how it learns its part. Circuits stay each worker's own.

Times are seconds of any one clock that does not step back; they are passed in, so that tests and simulators own them.
"""

from enum import StrEnum

from batchmill.schedule.bucket import Bucket
from batchmill.schedule.retry import Done, Later, Verdict
from batchmill.schedule.share import Heard, Part
from batchmill.schedule.window import HALVING_PAUSE, Gauges, Window

WINDOW = 8  # requests in flight, to begin with
MOST = 2048  # where the window is found: more than any engine runs at once
FIRST_PROBE = 0.5  # seconds after the circuit opened; doubles with each failure
SLOWEST_PROBE = 5.0  # seconds: a backend that is back is found within 10 s (reliability, targets)
TRIAL_PATIENCE = 5.0  # seconds; then one more may go: the call on trial may be sound and take half an hour
DOUBTS = 3  # in a row, without a success between: then it is not the lines


class _Circuit(StrEnum):
    WELL = "well"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Pace:
    """The pace of one Backend. Not shared between threads.

    Args:
        window: The requests in flight at the start.
        most: The most that a better window is sought within; without it `window` is the most, and nothing is sought.
        polite: Leave more of the engine to others than the batch needs to lose nothing.
        alone: No other worker sends to this Backend. Otherwise one request at a time goes until it has heard its part.
    """

    def __init__(
        self, *, window: int = WINDOW, most: int | None = None, polite: bool = False, alone: bool = True
    ) -> None:
        self._most = window if most is None else most
        self._window = Window(most=self._most, start=window, polite=polite)
        self._share: int | None = None if alone else 0  # of the window; None where all of it is this worker's
        self._leads = alone
        self._beside: dict[str, Part] = {}  # what the others told last
        self._pressed = 0
        self._halved_at = float("-inf")
        self._halved: tuple[int, int] | None = None  # the round in which a 429 halved the share, and to how much
        self._bucket = Bucket()
        self._in_flight = 0
        self._side_by_side = 1
        self._slots = self._most
        self._doubts = 0
        self._answered_at = float("-inf")  # when it last answered as a sound backend does
        self._circuit = _Circuit.WELL
        self._turned_at = float("-inf")  # when the circuit last changed
        self._unwell_since: float | None = None
        self._unwell_why = ""
        self._wait = FIRST_PROBE
        self._probe_at = 0.0
        self._trial_out = False
        self._trial_at = 0.0

    @property
    def side_by_side(self) -> int:
        """Of how many groups of lines with a common beginning the next one is chosen.

        One, unless what runs beside each other in the engine finds nothing in each other's cache: then each beginning
        is to be computed by one of them, not by all.
        """
        return self._side_by_side if self._share is None else min(self._side_by_side, self.window)

    @property
    def window(self) -> int:
        """The most requests in flight now."""
        return min(self._window.size if self._share is None else max(1, self._share), self._slots)

    @property
    def most(self) -> int:
        """The most that may ever be in flight."""
        return self._most

    @property
    def in_flight(self) -> int:
        """Requests sent and not yet answered."""
        return self._in_flight

    @property
    def is_open(self) -> bool:
        """Whether nothing is sent until a probe has succeeded."""
        return self._circuit is _Circuit.OPEN

    @property
    def unwell_since(self) -> float | None:
        """When the present outage began; None while the backend is well."""
        return self._unwell_since

    @property
    def unwell_why(self) -> str:
        """What began the present outage, in words; "" while the backend is well."""
        return self._unwell_why

    def answered_since(self, moment: float) -> bool:
        """Say whether it has answered any line as a sound backend does since then."""
        return self._answered_at > moment

    def may_send(self, now: float) -> bool:
        """Say whether one more request may be sent."""
        is_free = self._in_flight < self.window
        if self._circuit is _Circuit.WELL:
            return is_free and (self._window.is_alone or self._bucket.is_open(now))
        late = is_free and now >= self._trial_at + TRIAL_PATIENCE
        return self._circuit is _Circuit.HALF_OPEN and (late or not self._trial_out)

    def opens_at(self, now: float) -> float | None:
        """Return when one more request may be sent if nothing is answered before; None if never, or at once."""
        is_free = self._circuit is _Circuit.WELL and self._in_flight < self.window
        return self._bucket.opens_at(now) if is_free and not self.may_send(now) else None

    def sent(self, now: float, *, prefill: int = 0) -> bool:
        """Count a request that was sent; say whether it is a trial and goes alone, so that a fall is its own.

        `prefill` are the tokens of its prompt that no prefix cache is expected to have.
        """
        if not self._window.is_alone:  # or it would be in debt when somebody else comes
            self._bucket.take(prefill, now)
        self._window.moved(now, self._in_flight)
        self._trial_out = self._circuit is _Circuit.HALF_OPEN
        self._trial_at = now
        self._in_flight += 1
        return self._trial_out and self._in_flight == 1

    def withdrawn(self, sent_at: float | None = None) -> None:
        """Count a request that was given up before its answer: it says nothing about the backend."""
        self._in_flight -= 1
        if not self._is_old(sent_at):
            self._trial_out = False

    def answered(
        self,
        verdict: Verdict,
        now: float,
        sent_at: float | None = None,
        why: str = "",
        *,
        work: float = 1.0,
        prefill: int = 0,
    ) -> None:
        """Learn from an answer.

        A request sent before the circuit last changed says nothing about the backend's present health, so tell when
        it was sent; without `sent_at` it is taken for a recent one. `why` says in words what was wrong, if anything.
        `work` is what the answer brought, in one unit for all of a Backend's: tokens generated, or bytes.
        """
        self._window.moved(now, self._in_flight)
        self._in_flight -= 1
        if isinstance(verdict, Done):
            if verdict.succeeded:
                began = now if sent_at is None else sent_at
                self._bucket.answered(prefill, now, took=now - began)
                self._window.answered(sent_at=began, now=now, work=max(1.0, work))
            if not verdict.doubt:
                self._answered_at = now
                self._doubts = 0
                if self._circuit is _Circuit.WELL:  # and stays so: nearly every answer ends here
                    return
        elif isinstance(verdict, Later) and verdict.pressure:
            self._press(now)
        if self._circuit is _Circuit.OPEN or self._is_old(sent_at):
            return
        if self._fells(verdict):
            self._open(now, why)
        elif self._circuit is _Circuit.HALF_OPEN:
            self._turn(_Circuit.WELL, now)
            self._unwell_since = None
            self._unwell_why = ""

    def gauged(self, gauges: Gauges | None, now: float) -> None:
        """Learn what the engine says of itself, about once a second; None when it says nothing."""
        if gauges is not None and gauges.apart and gauges.running:
            self._side_by_side = max(self._side_by_side, int(gauges.running))
            # What waits in the engine takes the first slot that is free, not the one that has its beginning.
            self._slots = self._side_by_side if gauges.waiting else self._slots
        in_flight = self._in_flight + sum(part.in_flight for part in self._beside.values())
        # Who wanted more than it had when it told may have it by now.
        is_growing = any(part.wanted > part.in_flight for part in self._beside.values())
        self._window.gauged(gauges, now, in_flight, at_most=self._window.size if is_growing else 0)

    def part(self, now: float, *, waiting: int) -> Part:
        """Return what to tell the others: `waiting` more requests are in hand than are in flight.

        While the circuit is open none of them could be sent: the others may have this worker's part.
        """
        waiting = 0 if self.is_open else waiting
        return Part(
            in_flight=self._in_flight,
            wanted=min(self._in_flight + waiting, self._most),
            round=self._window.round,
            pressed=self._pressed,
            measure=self._window.measure(now, self._in_flight),
        )

    @property
    def is_busy(self) -> bool:
        """Whether requests are out: its own, or those of others for whom it judges."""
        return self._in_flight > 0 or (self._leads and any(part.in_flight for part in self._beside.values()))

    @property
    def judged(self) -> tuple[int, int] | None:
        """The window of all workers, and its round; None where another says it."""
        return (min(self._window.size, self._slots), self._window.round) if self._leads else None

    @property
    def start(self) -> int:
        """The window to begin with where nobody has said one."""
        return min(self._window.size, self._slots)

    def hear(self, heard: Heard, now: float) -> bool:
        """Learn one's part of the window, and judge it where one leads; say whether there is something new to tell."""
        total, beside = heard.total, self._beside
        self._beside = dict(heard.others)
        is_new = heard.leads != self._leads
        self._leads = heard.leads
        self._window.joint(bool(heard.others) or not heard.leads, now)
        if not heard.leads:
            if total[1:] != (self._window.size, self._window.round):
                self._window.follow(total.total, total.round, now)
        elif is_new:
            self._window.lead(total.total, total.round, now)
        elif heard.others:
            if any(part.pressed > beside.get(worker, Part()).pressed for worker, part in heard.others.items()):
                self._window.pressed(now)
            self._judge(now)
        self._take(heard)
        return self._leads and bool(heard.others) and total[1:] != self.judged

    def _judge(self, now: float) -> None:
        """Judge what all have measured, once all that are busy have heard of the present round."""
        told = [part for part in self._beside.values() if part.is_busy]
        if all(part.round == self._window.round for part in told):
            mine = self._window.measure(now, self._in_flight)
            self._window.judge([mine, *(part.measure for part in told)], now)

    def _take(self, heard: Heard) -> None:
        """Take one's part of the window; what a 429 has halved stays so until it is judged anew."""
        self._share = None
        if heard.others or not heard.leads:
            is_halved = self._halved is not None and self._halved[0] == heard.total.round
            self._share = min(heard.held, self._halved[1]) if self._halved and is_halved else heard.held
        whole = max(1, heard.total.total)
        self._bucket.share(1.0 if self._share is None else max(1, self._share) / whole)

    def _press(self, now: float) -> None:
        """Send half at once; who leads says so to all, the others tell who leads."""
        self._pressed += 1
        if self._share is not None and now - self._halved_at >= HALVING_PAUSE:
            self._halved_at = now
            self._share = max(1, self._share // 2)
            self._halved = (self._window.round, self._share)
        if self._leads:
            self._window.pressed(now)

    def _is_old(self, sent_at: float | None) -> bool:
        return sent_at is not None and sent_at < self._turned_at

    def _fells(self, verdict: Verdict) -> bool:
        """Say whether this verdict, after those before it, means that the backend is unwell."""
        if verdict.doubt:
            self._doubts += 1
            return self._circuit is _Circuit.HALF_OPEN or self._doubts >= DOUBTS
        return isinstance(verdict, Later) and verdict.unwell

    def probe_due(self, now: float) -> bool:
        """Say whether it is time to ask the backend for its models; tell `probed` what came of it."""
        return self._circuit is _Circuit.OPEN and now >= self._probe_at

    def probed(self, ok: bool, now: float) -> None:
        """Learn from a probe: it lets one request through, or puts the next probe off."""
        if self._circuit is not _Circuit.OPEN:
            return
        if ok:
            self._turn(_Circuit.HALF_OPEN, now)
            self._trial_out = False
        else:
            self._put_off(now)

    def _open(self, now: float, why: str) -> None:
        self._doubts = 0
        self._bucket.restart()
        if self._circuit is _Circuit.WELL:
            self._unwell_since = now
            self._unwell_why = why
            self._wait = FIRST_PROBE
            self._probe_at = now + FIRST_PROBE
        else:
            self._put_off(now)
        self._turn(_Circuit.OPEN, now)

    def _put_off(self, now: float) -> None:
        self._wait = min(SLOWEST_PROBE, self._wait * 2)
        self._probe_at = now + self._wait

    def _turn(self, circuit: _Circuit, now: float) -> None:
        self._circuit = circuit
        self._turned_at = now
