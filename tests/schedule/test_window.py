"""The window that is found: how it grows, where it stays, and what makes it follow."""

import heapq
from collections import deque
from itertools import pairwise

import pytest

from batchmill.schedule.window import PROBE_SELDOM, SHARED_ROOM, Gauges, Window


class Loop:
    """A backend with `slots`, kept busy within a window. A request takes about a second, and more in company.

    With `soft` there is no more to be had than about so many requests a second, however many slots there are.
    `others` of its slots are used by others; `seen` says whether its gauges are.
    """

    def __init__(self, window: Window, slots: int, *, soft: float = 1e9, others: int | None = None) -> None:
        self.window = window
        self.slots = slots
        self.soft = soft
        self.others = others or 0
        self.seen = others is not None
        self.scarce = 1.0  # part of the window that there are lines for
        self.now = 100.0
        self.sizes = [window.size]
        self._out: list[tuple[float, float]] = []  # heap: when it ends, when it was sent
        self._queue: deque[float] = deque()
        self._sent = 0
        self._look_at = 101.0

    @property
    def in_flight(self) -> int:
        """Requests sent and not answered."""
        return len(self._out) + len(self._queue)

    def run(self, seconds: float) -> int:
        """Let time pass; return the size at its end, and keep all sizes on the way."""
        end = self.now + seconds
        while self.now < end:
            self._send()
            ends_at = self._out[0][0]
            if self.seen and self._look_at < ends_at:
                self._look()
                continue
            self.now, sent_at = heapq.heappop(self._out)
            self.window.moved(self.now, self.in_flight + 1)
            self.window.answered(sent_at=sent_at, now=self.now, work=10.0)
            self.sizes.append(self.window.size)
        return self.window.size

    def _send(self) -> None:
        while self.in_flight < max(1, self.scarce * self.window.size):
            self.window.moved(self.now, self.in_flight)
            self._queue.append(self.now)
        while self._queue and len(self._out) + self.others < self.slots:
            self._sent += 1
            takes = 0.5 + (self._sent * 7 % 11) / 10 + (len(self._out) + self.others) / self.soft
            heapq.heappush(self._out, (self.now + takes, self._queue.popleft()))

    def _look(self) -> None:
        self.now = max(self.now, self._look_at)
        self._look_at += 1.0
        self.window.gauged(Gauges(len(self._queue), len(self._out) + self.others, 0.5), self.now, self.in_flight)
        self.sizes.append(self.window.size)


def seek(**more: bool) -> Window:
    """Return a window that is sought from eight on."""
    return Window(most=1024, start=8, **more)


def test_a_window_doubles_while_throughput_does() -> None:
    """Slow start: up to the most, and no further."""
    loop = Loop(Window(most=64, start=8), 1000)
    assert loop.run(30) == 64
    assert sorted(set(loop.sizes)) == [8, 16, 32, 64]


def test_a_window_without_a_better_one_to_seek_is_fixed() -> None:
    """Where the start is the most, answers change nothing."""
    loop = Loop(Window(most=8, start=8), 1000)
    loop.run(60)
    assert set(loop.sizes) == {8}
    assert Window(most=4, start=8).size == 4


@pytest.mark.parametrize("slots", [32, 34, 50, 64])
def test_steps_without_gain_are_taken_back(slots: int) -> None:
    """All slots are used, and no queue grows without end, though nobody tells how many there are."""
    loop = Loop(seek(), slots)
    loop.run(30)
    assert slots <= loop.run(10) < 3 * slots


def test_a_window_that_is_not_full_is_not_judged() -> None:
    """Where lines are scarce, or the bucket holds them back, answers say nothing about a larger window."""
    loop = Loop(Window(most=1024, start=32), 1000)
    loop.scarce = 0.5
    loop.run(60)
    assert set(loop.sizes) == {32}


def test_scarce_lines_are_no_smaller_backend() -> None:
    """A window that was found stays while there is less to send."""
    loop = Loop(Window(most=64, start=8), 1000)
    loop.run(30)
    loop.scarce = 0.5
    assert loop.run(60) == 64


def test_a_backend_that_grows_is_followed() -> None:
    """More slots are found and used."""
    loop = Loop(seek(), 32)
    loop.run(60)
    loop.slots = 256
    assert loop.run(60) >= 256


def test_a_window_that_could_be_larger_is_found_by_probing() -> None:
    """Every few windows a quarter more is tried, and where that brings something the search goes on."""
    window = Window(most=1024, start=64)
    for now in (98.0, 99.0):
        window.gauged(Gauges(1, 99), now, 48)
    window.gauged(None, 100.0, 48)
    assert window.size == 40
    loop = Loop(window, 1000)
    assert loop.run(30) > 80
    assert 50 in loop.sizes


def test_a_backend_that_shrinks_is_followed() -> None:
    """When throughput falls for more than a window, the window shrinks, with something to spare."""
    loop = Loop(seek(), 64)
    assert loop.run(40) >= 64
    loop.slots = 16
    assert 16 <= loop.run(60) <= 48


def test_lines_that_became_heavier_do_not_keep_the_window_small() -> None:
    """What looked like a smaller backend is found out when less in flight brings less."""
    loop = Loop(Window(most=64, start=8), 1000)
    assert loop.run(30) == 64
    loop.slots = 20
    assert loop.run(20) < 64
    loop.slots = 1000
    assert loop.run(30) == 64


def test_a_smaller_window_that_costs_is_taken_back() -> None:
    """A step down is a probe: where it brings less than what was, the size before it returns."""
    loop = Loop(Window(most=64, start=8), 1000)
    loop.run(30)
    loop.slots = 20
    while loop.window.size == 64:
        loop.run(0.1)
    loop.slots = 4
    loop.run(20)
    assert loop.sizes[-1] == 64


def test_a_backend_that_becomes_much_faster_is_followed_without_a_probe() -> None:
    """When throughput rises by itself, something waited inside: the search begins anew."""
    loop = Loop(seek(), 64)
    loop.run(40)
    loop.slots = 8
    at = loop.run(60)
    loop.slots = 1000
    assert loop.run(12) >= 2 * at


def test_an_engine_of_our_own_is_filled_until_a_few_wait() -> None:
    """With gauges and nobody else there, the engine's queue is small and positive; more slots are used at once."""
    loop = Loop(seek(), 100, others=0)
    assert 100 < loop.run(40) <= 116
    loop.slots = 200
    assert 200 < loop.run(40) <= 232


def test_an_engine_of_our_own_is_filled_before_it_answers() -> None:
    """The longest lines go first and take their time: the gauges say that there is room."""
    window = seek()
    for second in range(1, 5):
        window.moved(second, window.size)
        window.gauged(Gauges(0, window.size, 0.1), second, window.size)
    assert window.size == 128


def test_a_full_cache_takes_the_window_down() -> None:
    """Less is sent to an engine that would have to throw out what it has begun; where it is nearly full no more is."""
    window = Window(most=1024, start=100)
    window.gauged(Gauges(0, 100, 0.9), 1.0, 100)
    assert window.size == 100
    for second in range(2, 5):
        window.gauged(Gauges(1, window.size - 1, 0.97), second, window.size)
    assert 90 <= window.size < 95
    at = window.size
    for second in range(5, 9):
        window.moved(second, at)
        window.gauged(Gauges(0, at, 0.9), second, at)
        for _ in range(at):
            window.moved(second + 0.5, at)
            window.answered(sent_at=second, now=second + 0.5, work=1)
    assert window.size == at


def test_gauges_do_not_move_a_window_that_is_set() -> None:
    """A configured window is what it was configured to, whatever the engine says."""
    window = Window(most=8, start=8)
    for second in range(9):
        window.gauged(Gauges(50, 8, 0.99), second, 8)
    assert window.size == 8
    assert not window.is_alone


def test_where_others_wait_the_window_gives_way() -> None:
    """Two looks in a row that see a queue in a shared engine take the window down to what runs, and leave room."""
    window = Window(most=1024, start=64)
    window.gauged(Gauges(0, 80), 1.0, 64)
    window.gauged(Gauges(10, 80), 2.0, 64)
    assert window.size == 64
    window.gauged(Gauges(14, 80), 3.0, 64)
    assert window.size == round(SHARED_ROOM * 50)


def test_a_window_that_others_waited_at_is_not_soon_tried_again() -> None:
    """Where the engine queued, a larger window is felt: it is tried again only after a long time."""
    loop = Loop(seek(), 30, others=3)
    loop.run(12)
    assert max(loop.sizes) > 27
    loop.sizes.clear()
    loop.run(PROBE_SELDOM - 4)
    assert max(loop.sizes) < 27


def test_where_others_are_steps_are_small_and_probes_rare() -> None:
    """Both are felt by others: growth by half where not much is to be had, and ever fewer probes in vain."""
    loop = Loop(seek(), 1000, soft=12, others=2)
    loop.run(3000)
    steps = [later / earlier for earlier, later in pairwise(loop.sizes) if later > earlier]
    assert 1.4 < max(steps[2:]) < 1.51
    loop.sizes.clear()
    loop.run(1000)
    probes = sum(later > earlier for earlier, later in pairwise(loop.sizes))
    windows = 1000 / (1 + loop.window.size / 12)
    assert probes <= windows / PROBE_SELDOM + 1


def test_gauges_that_fall_silent_are_no_longer_waited_for() -> None:
    """When `/metrics` is gone, gain decides again."""
    loop = Loop(seek(), 1000, others=0)
    loop.run(2)
    loop.seen = False
    at = loop.run(20)
    loop.run(20)
    assert loop.window.size == at
    loop.window.gauged(None, loop.now, loop.in_flight)
    assert loop.run(20) > at


def test_a_polite_window_leaves_a_part_to_others() -> None:
    """Where a backend brings less and less, politeness stops early, and between the last two sizes."""
    polite, other = (Loop(seek(polite=polite), 1000, soft=64).run(100) for polite in (True, False))
    assert 32 <= polite < other / 2


@pytest.mark.parametrize("gauges", [False, True])
def test_pressure_halves_the_window_and_it_comes_back(gauges: bool) -> None:
    """After a 429 the window is half; it grows again by the gauges, or little by little."""
    window = Window(most=64, start=32)
    if gauges:
        window.gauged(Gauges(1, 31), 90.0, 32)
    window.pressed(100.0)
    window.pressed(100.5)
    assert window.size == 16
    loop = Loop(window, 1000, others=0 if gauges else None)
    loop.run(3)
    assert 16 < window.size < 32
    assert loop.run(60) == 64


def test_a_window_is_never_left() -> None:
    """It has at least one request in flight, whatever happens."""
    window = Window(most=4, start=2)
    for now in range(4):
        window.pressed(10.0 * now)
    assert window.size == 1
