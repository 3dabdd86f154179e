"""The simulated engine does what its page says: the policy's figures are worth as much as it is."""

import engine_model as model
import pytest
import suites
from engine_model import Engine, Profile, Sequence
from hypothesis import given, settings
from hypothesis import strategies as st


def finished(engine: Engine, *calls: Sequence) -> list[Sequence]:
    """Let calls arrive now; return them as they end."""
    for call in calls:
        engine.submit(call, engine.clock)
    ended: list[Sequence] = []
    while len(ended) < len(calls):
        ended += engine.run()
    return ended


def test_a_request_alone_takes_what_the_profile_says() -> None:
    """A prefill of 900 tokens, then 199 iterations at the least time, each reading the whole context."""
    engine = Engine()
    call = Sequence((), 900, 200)
    finished(engine, call)
    first = 900 * 32e-6 + 0.5e-3 + 900 * 0.039e-6
    reads = sum(range(901, 1100)) * 0.039e-6
    assert call.first_token_at == pytest.approx(first)
    assert engine.clock == pytest.approx(first + 199 * 5.5e-3 + reads)
    assert engine.busy == engine.clock


def test_iterations_taken_together_are_as_those_one_by_one() -> None:
    """A stop after every iteration changes nothing but the work of simulating."""
    one, many = Engine(), Engine()
    for engine in (one, many):
        engine.submit(Sequence((), 500, 300), 0.0)
        engine.submit(Sequence((), 100, 77), 1.0)
    while one.run():
        pass
    until = 0.0
    while many.generated < one.generated:
        until += 1e-3
        many.run(until)
    assert many.generated == one.generated == 377
    assert many.busy == pytest.approx(one.busy)


def test_a_long_prompt_comes_in_chunks() -> None:
    """What is generating goes on between two chunks of somebody else's prompt."""
    engine = Engine()
    engine.submit(Sequence((), 10, 1000), 0.0)
    engine.submit(Sequence((), 40_000, 1), 0.1)
    engine.run()
    assert engine.clock == pytest.approx(0.1 + 40_000 * 32e-6, abs=0.05)
    assert 15 < engine.generated < 40


@pytest.mark.parametrize("together", [True, False])
def test_a_prefix_is_computed_once(together: bool) -> None:
    """By those that run together, and by one that comes after."""
    engine = Engine()
    calls = [Sequence(((1, 4096),), 100, 10) for _ in range(9)]
    if together:
        finished(engine, *calls)
    else:
        for call in calls:
            finished(engine, call)
    assert engine.prefilled == 4096 + 9 * 100


def test_what_others_leave_behind_pushes_prefixes_out() -> None:
    """The cache is full of tails after a while; the least recently used goes first, so that a used prefix stays."""
    engine = Engine(Profile(kv_tokens=20_000))
    finished(engine, Sequence(((1, 4096),), 100, 10), Sequence(((2, 4096),), 100, 10))
    for _ in range(12):
        finished(engine, Sequence((), 900, 100), Sequence(((2, 4096),), 100, 10))
    before = engine.prefilled
    finished(engine, Sequence(((2, 4096),), 100, 10))
    assert engine.prefilled - before == 100
    before = engine.prefilled
    finished(engine, Sequence(((1, 4096),), 100, 10))
    assert engine.prefilled - before > 1000


def test_a_full_cache_throws_out_the_last_and_computes_it_anew() -> None:
    """Everybody ends with all of its tokens, at the cost of prompts computed again."""
    engine = Engine(Profile(kv_tokens=5000))
    ended = finished(engine, *(Sequence((), 400, 500) for _ in range(10)))
    assert {call.generated for call in ended} == {500}
    assert engine.preemptions > 0
    assert engine.prefilled > 10 * 400


def test_a_request_that_cannot_fit_is_a_fault() -> None:
    """A suite that asks for it is wrong: nothing waits for ever."""
    with pytest.raises(ValueError, match="larger than the cache"):
        finished(Engine(Profile(kv_tokens=1000)), Sequence((), 900, 500))


def test_gauges_tell_what_waits_and_runs() -> None:
    """With four slots, six requests are four that run and two that wait."""
    engine = Engine(Profile(slots=4))
    for _ in range(6):
        engine.submit(Sequence((), 100, 500), 0.0)
    engine.run(1.0)
    seen = engine.gauges()
    assert (seen.waiting, seen.running) == (2, 4)
    assert 0.001 < seen.kv < 0.01


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3000), st.integers(1, 600)), min_size=1, max_size=40),
    st.integers(1, 32),
)
def test_nothing_is_faster_than_the_lower_bound(shapes: list[tuple[int, int, int]], slots: int) -> None:
    """Whatever the lines are, and all tokens are there, prompts computed at least once."""
    lines = [
        suites.Line(((key, 512 * key),) if key else (), private, output, output) for key, private, output in shapes
    ]
    engine = Engine(Profile(slots=slots, kv_tokens=20_000))
    finished(engine, *(line.sequence() for line in lines))
    assert engine.clock >= suites.lower_bound(lines, engine.profile) * 0.999
    assert engine.generated == sum(line.output for line in lines)
    assert engine.prefilled + engine.generated >= suites.least_tokens(lines)


@pytest.mark.parametrize("name", ["A", "B", "C", "D", "I"])
def test_a_suite_is_the_same_for_a_seed(name: str) -> None:
    """And another for another, except where all lines are alike."""
    assert suites.suite(name, lines=60) == suites.suite(name, lines=60)
    assert (suites.suite(name, lines=60) == suites.suite(name, lines=60, seed=2)) == (name == "I")
    assert isinstance(suites.profile(name), model.Profile)
