"""How workers share one window: the parts, who judges, and that the parts never come to more than the total."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchmill.schedule.measure import Measure
from batchmill.schedule.pace import Pace
from batchmill.schedule.retry import Done, Later
from batchmill.schedule.share import Heard, Part, Total, fair, settle
from batchmill.schedule.window import Gauges

GOOD = Done(succeeded=True)
PRESSURE = Later(after=1.0, attempt_used=False, pressure=True)
WANTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 300), min_size=1)


class Row:
    """The row of one backend, and those of its workers' lanes, as the Store keeps them."""

    def __init__(self, *paces: Pace) -> None:
        self.total = Total()
        self.parts: dict[str, Part] = {}
        self.paces = dict(zip("abcdefgh", paces, strict=False))
        self.waiting = dict.fromkeys(self.paces, 1000)

    def tell(self, worker: str, now: float) -> bool:
        """Let a worker tell its part, and hear; return what its Pace says to that."""
        pace = self.paces[worker]
        self.total, self.parts[worker], heard = settle(
            self.total,
            worker=worker,
            mine=pace.part(now, waiting=self.waiting[worker]),
            others={other: part for other, part in self.parts.items() if other != worker},
            judged=pace.judged,
            size=pace.start,
        )
        return pace.hear(heard, now)

    def settle(self, now: float) -> float:
        """Let all tell until nothing moves any more; return the time."""
        for turn in range(4 * len(self.paces)):
            now += 0.01
            self.tell(list(self.paces)[turn % len(self.paces)], now)
        return now

    def leave(self, worker: str) -> None:
        """Let a worker be known to be dead, or gone."""
        del self.parts[worker], self.paces[worker]

    @property
    def windows(self) -> list[int]:
        """What each may have in flight."""
        return [pace.window for pace in self.paces.values()]


def many(count: int, *, window: int = 64, most: int | None = None) -> list[Pace]:
    """Return the paces of so many workers."""
    return [Pace(window=window, most=most, alone=False) for _ in range(count)]


def fill(pace: Pace, now: float) -> None:
    """Send as much as may be."""
    while pace.may_send(now):
        pace.sent(now)


def test_a_total_is_divided_by_what_each_wants() -> None:
    """Who wants little gets it, the others the same; what nobody wants goes to those that want any."""
    assert fair(12, {"a": 2, "b": 100, "c": 100}) == {"a": 2, "b": 5, "c": 5}
    assert fair(12, {"a": 0, "b": 3, "c": 1}) == {"a": 0, "b": 7, "c": 5}
    assert fair(12, {"a": 0, "b": 0}) == {"a": 6, "b": 6}
    assert fair(2, {"a": 9, "b": 9, "c": 9}) == {"a": 0, "b": 1, "c": 1}


@given(st.integers(0, 500), WANTS)
def test_parts_sum_to_the_total_and_are_fair(total: int, wants: dict[str, int]) -> None:
    """Nobody could get more of what it wants but from one that has no more than itself."""
    parts = fair(total, wants)
    assert sum(parts.values()) == total
    assert min(parts.values()) >= 0
    for worker, part in parts.items():
        if part < wants[worker]:
            assert part >= max(parts.values()) - 1
    if any(wants.values()):
        assert all(part == 0 for worker, part in parts.items() if not wants[worker])


@settings(max_examples=60)
@given(st.integers(1, 64), st.integers(1, 5), st.data())
def test_parts_never_come_to_more_than_the_total(window: int, workers: int, data: st.DataObject) -> None:
    """Whoever tells when, works or does not, comes or goes: in flight is at most the total and one for each."""
    row, now, out = Row(*many(workers, window=window)), 0.0, dict.fromkeys("abcde"[:workers], 0)
    for _ in range(40):
        now += 0.25
        worker = data.draw(st.sampled_from(sorted(row.paces)))
        match data.draw(st.sampled_from(["tell", "fill", "fill", "answer", "idle", "busy"])):
            case "tell":
                row.tell(worker, now)
            case "fill":
                fill(row.paces[worker], now)
            case "answer" if row.paces[worker].in_flight:
                row.paces[worker].answered(GOOD, now, now)
            case "idle":
                row.waiting[worker] = 0
            case "busy":
                row.waiting[worker] = 1000
        out = {each: pace.in_flight for each, pace in row.paces.items()}
        assert sum(out.values()) <= max(window, 1) + workers


def test_a_worker_that_is_alone_has_the_whole_window() -> None:
    """Once it has heard that nobody else is there it judges by itself, answer by answer, as one that never asked."""
    pace, plain = Pace(most=64, alone=False), Pace(most=64)
    row = Row(pace)
    assert pace.window == 1
    assert not row.tell("a", 0.0)
    assert pace.window == 8
    windows = []
    for each in (pace, plain):
        for second in range(1, 9):
            fill(each, second)
            for _ in range(each.in_flight):
                each.answered(GOOD, second + 0.5, second)
        windows.append(each.window)
    assert windows[0] == windows[1] > 8
    row.tell("a", 10.0)
    assert row.total[:2] == ("a", pace.window)


def test_workers_share_a_window_that_is_set() -> None:
    """The number set is the total: three workers with work share it, and one without gets none of it."""
    row = Row(*many(4))
    row.waiting["d"] = 0
    row.settle(0.0)
    assert row.windows == [21, 21, 22, 1]
    assert row.total == Total("a", 64, row.total.round)


def test_a_part_is_taken_once_its_last_owner_has_let_it_go() -> None:
    """A worker that had all of the window is one of two: the other grows as it shrinks, answer by answer."""
    row = Row(*many(2))
    row.tell("a", 0.0)
    first, second = row.paces.values()
    fill(first, 0.1)
    row.tell("a", 0.2)
    row.tell("b", 0.3)
    assert (first.in_flight, second.window) == (64, 1)
    row.tell("a", 0.4)
    assert first.window == 32
    for _ in range(20):
        first.answered(GOOD, 0.5, 0.1)
    row.tell("a", 0.6)
    row.tell("b", 0.7)
    assert (first.in_flight, second.window) == (44, 20)


def test_a_worker_that_goes_leaves_its_part_to_the_others() -> None:
    """Also the one that led: another goes on with its total."""
    row = Row(*many(3, window=8, most=64))
    now = row.settle(0.0)
    row.total = Total("a", 30, row.total.round + 1)
    row.paces["a"].hear(Heard(row.total, leads=True, held=10, others={}), now)
    for worker in "bc":
        row.tell(worker, now)
    row.leave("a")
    row.settle(now)
    assert row.total[:2] == ("b", 30)
    assert row.windows == [15, 15]
    row.leave("b")
    row.settle(now + 1)
    assert (row.total.total, row.windows) == (30, [30])


def test_a_leader_that_has_forgotten_it_leads_on() -> None:
    """Its commit was kept, but it never heard so: the next time it hears the total that stands."""
    row = Row(*many(2))
    row.total, row.parts["b"] = Total("a", 40, 7), Part(wanted=9, in_flight=9, held=9)
    row.tell("a", 0.0)
    assert row.total == Total("a", 40, 8)
    assert row.paces["a"].window == 31


def test_the_sum_of_what_all_measured_is_judged() -> None:
    """What two workers have delivered together makes their window grow, though each alone has too few answers."""
    row = Row(*many(2, window=8, most=64))
    now = row.settle(0.0)
    for worker, pace in row.paces.items():
        fill(pace, now)
        row.tell(worker, now)
    for pace in row.paces.values():
        for _ in range(4):
            pace.answered(GOOD, now + 1, now)
            pace.sent(now + 1)
    now += 1.1
    row.tell("b", now)
    assert row.total.total == 8
    assert row.tell("a", now)
    assert not row.tell("a", now)
    row.tell("b", now)
    assert row.total.total == sum(row.windows) == 16


def test_what_was_measured_in_another_round_is_not_judged() -> None:
    """A busy worker that has not heard of the present round is waited for; one that has nothing is not."""
    row = Row(*many(2, window=8, most=64))
    now = row.settle(0.0)
    late = Part(in_flight=4, wanted=4, held=4, round=row.total.round - 1, measure=Measure(1.0, 4.0, 90, 90, 90, 90))
    idle = Part(round=row.total.round - 1, measure=Measure(1.0, 4.0, 90, 90, 90, 90))
    pace = row.paces["a"]
    fill(pace, now)
    for part in (late, idle):
        pace.hear(Heard(row.total, leads=True, held=4, others={"b": part}), now + 1)
        assert pace.judged == (8, row.total.round)


@pytest.mark.parametrize("presses", ["a", "b"])
def test_pressure_on_one_is_pressure_on_all(presses: str) -> None:
    """Whoever is refused sends half at once, its leader or not; the total is half as soon as the leader has heard."""
    row = Row(*many(2))
    now = row.settle(0.0)
    pace = row.paces[presses]
    fill(pace, now)
    while pace.in_flight:
        pace.answered(PRESSURE, now + 0.1, now)
    assert pace.window == 16
    row.tell(presses, now + 0.2)
    if presses == "b":
        assert pace.window == 16
    row.settle(now + 0.3)
    assert row.total.total == 32
    assert row.windows == [16, 16]


def test_a_window_that_pressure_halved_comes_back() -> None:
    """With each window of successes of all workers together it grows a little, up to what is set."""
    row = Row(*many(2, window=4))
    now = row.settle(0.0)
    row.paces["a"].sent(now)
    row.paces["a"].answered(PRESSURE, now, now)
    now = row.settle(now)
    assert row.total.total == 2
    for _ in range(30):
        now += 1
        for worker, pace in row.paces.items():
            row.tell(worker, now)
            fill(pace, now)
            while pace.in_flight:
                pace.answered(GOOD, now + 0.5, now)
    assert row.total.total == 4


def test_gauges_are_judged_by_the_leader_with_all_that_is_in_flight() -> None:
    """What the others have in flight is ours in the engine; a follower looks, and judges nothing."""
    row = Row(*many(2, window=8, most=64))
    now = row.settle(0.0)
    for pace in row.paces.values():
        fill(pace, now)
    assert all(pace.is_busy for pace in row.paces.values())
    row.waiting = dict.fromkeys(row.waiting, 0)
    row.settle(now)
    leader, follower = row.paces.values()
    follower.gauged(Gauges(0, 8), now + 1)
    assert row.total.total == 8
    leader.gauged(Gauges(0, 8), now + 1)
    assert leader.judged is not None
    assert leader.judged[0] == 16
    for _ in range(4):
        leader.answered(GOOD, now + 1, now)
    assert leader.is_busy
    assert not Pace().is_busy


def test_a_worker_that_cannot_reach_the_backend_holds_nothing() -> None:
    """Its circuit is open: whoever can reach it gets all of the window, until it can again."""
    row = Row(*many(2))
    now = row.settle(0.0)
    pace = row.paces["b"]
    pace.sent(now)
    pace.answered(Later(after=1.0, unwell=True), now + 1)
    now = row.settle(now + 1)
    assert row.windows == [64, 1]
    pace.probed(ok=True, now=now)
    row.settle(now)
    assert row.windows == [32, 32]


def test_prompts_of_all_workers_are_paced_as_those_of_one() -> None:
    """At the start, of which nothing is known, each lets its part of the prompts go."""
    row = Row(*many(4))
    row.settle(0.0)
    opens = []
    for pace in (Pace(window=64), row.paces["a"]):
        pace.sent(10.0, prefill=16_384)
        at = pace.opens_at(10.0)
        assert at is not None
        opens.append(at - 10.0)
    assert opens[1] == pytest.approx(4 * (opens[0] + 2048 / 16384) - 2048 / 16384, rel=0.01)


def test_lines_of_groups_go_side_by_side_within_the_part() -> None:
    """An engine whose slots have caches of their own: a worker with a part of them sends that many groups beside."""
    row = Row(*many(2, window=8))
    now = row.settle(0.0)
    for pace in row.paces.values():
        fill(pace, now)
        pace.gauged(Gauges(0, 8, apart=True), now)
    assert [pace.side_by_side for pace in row.paces.values()] == [4, 4]
