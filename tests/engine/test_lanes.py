"""Which Backends of a worker can take a line now."""

from collections.abc import Collection

import pytest

from batchmill.backends.router import Router
from batchmill.engine.lanes import Lane, Lanes
from batchmill.schedule.pace import Pace
from batchmill.schedule.retry import Later
from engine.mill import Mill


@pytest.fixture
def lanes(mill: Mill) -> Lanes:
    """Two lanes: the first serves a and b, the second b and c."""
    made = [
        Lane(backend=mill.echo(name="ab:"), pace=Pace(window=2)),
        Lane(backend=mill.echo(name="bc:"), pace=Pace(window=3)),
    ]
    router = Router([lane.backend for lane in made])
    for lane, models in zip(made, ("ab", "bc"), strict=True):
        router.learn(lane.backend, tuple(models))
    return Lanes(lanes=made, router=router)


def fell(lane: Lane) -> None:
    """Open a lane's circuit."""
    lane.pace.sent(0.0)
    lane.pace.answered(Later(after=1.0, unwell=True), 1.0)


def test_slots_are_counted_for_each_model(lanes: Lanes) -> None:
    """A model has the free slots of all lanes that serve it, and of no other."""
    first, _ = lanes
    assert [lanes.free_slots(model) for model in "abcd"] == [2, 5, 3, 0]
    first.pace.sent(0.0)
    assert [lanes.free_slots(model) for model in "abcd"] == [1, 4, 3, 0]


def test_a_lane_that_fell_counts_for_nothing(lanes: Lanes) -> None:
    """While a circuit is open its models, its window and its slots are not there."""
    first, second = lanes
    assert (lanes.open_models(), lanes.window("abc")) == (frozenset("abc"), 5)
    fell(first)
    assert (lanes.open_models(), lanes.window("abc")) == (frozenset("bc"), 3)
    assert [lanes.free_slots(model) for model in "abc"] == [0, 3, 3]
    assert lanes.free_lane("a", 1.0) is None
    assert lanes.free_lane("b", 1.0) is second


def test_the_first_free_lane_takes_a_line(lanes: Lanes) -> None:
    """In the order of the settings; one whose window is full is passed over."""
    first, second = lanes
    assert lanes.free_lane("b", 0.0) is first
    for _ in range(2):
        first.pace.sent(0.0)
    assert lanes.free_lane("b", 0.0) is second
    assert lanes.free_lane("a", 0.0) is None


def test_a_lane_is_hungry_whatever_the_others_have(lanes: Lanes) -> None:
    """What is in hand for one lane's model does not feed a lane that serves another."""
    first, second = lanes
    in_hand = {"a": 100, "b": 0, "c": 2}

    def pending(models: Collection[str]) -> int:
        return sum(in_hand[model] for model in models)

    assert lanes.hungry_models(pending) == lanes.served_by(second)
    assert lanes.window("a") == first.pace.window
    assert lanes.window("c") == second.pace.window
    fell(second)
    assert lanes.hungry_models(pending) == frozenset()


def test_a_lane_that_leaves_gets_nothing(lanes: Lanes) -> None:
    """Its models, its window and its slots are not there, nor is its turn; it may still have lines out."""
    first, second = lanes
    lanes.drain(first)
    assert (list(lanes), lanes.leaving) == ([second, first], (first,))
    assert (lanes.open_models(), lanes.window("abc"), lanes.most("a")) == (frozenset("bc"), 3, 2)
    assert [lanes.free_slots(model) for model in "abc"] == [0, 3, 3]
    assert lanes.free_lane("a", 0.0) is None
    assert [list(lanes.in_turns()) for _ in range(2)] == [[second], [second]]
    lanes.add(first)
    assert lanes.free_lane("a", 0.0) is first
    assert [list(lanes.in_turns()) for _ in range(2)] == [[first, second], [second, first]]
    lanes.drain(first)
    lanes.remove(first)
    assert (list(lanes), lanes.most("a")) == ([second], 0)
