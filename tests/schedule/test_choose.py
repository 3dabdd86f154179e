"""Which batches a worker claims Slices from."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.schedule.choose import Candidate, Chooser

DAY = 86_400.0


def candidate(batch_id: str, organisation: str = "a", **facts: float) -> Candidate:
    """Return a candidate with the usual values."""
    usual = Candidate(batch_id=batch_id, organisation=organisation, open_slices=9, expires_at=DAY, created_at=0)
    return replace(usual, **facts)


def choose(candidates: Iterable[Candidate], slices: int, *, rate: float | None = None) -> tuple[str, ...]:
    """Choose anew."""
    return Chooser().choose(candidates, slices, now=0.0, rate=rate)


def test_organisations_take_turns_whatever_they_have_queued() -> None:
    """A thousand batches of one organisation do not keep another one waiting."""
    crowd = [candidate(f"a{n:03}", "a", expires_at=n) for n in range(1000)]
    chosen = choose([*crowd, candidate("b", "b", expires_at=5000)], 4)
    assert chosen == ("a000", "b", "a001", "b")


def test_batches_of_an_organisation_take_turns_by_deadline() -> None:
    """The nearest deadline leads, then the older batch, and all of them move."""
    chosen = choose(
        [candidate("late", expires_at=2 * DAY), candidate("young", created_at=2), candidate("old", created_at=1)], 6
    )
    assert chosen == ("old", "young", "late", "old", "young", "late")


def test_a_batch_is_chosen_for_as_many_slices_as_it_has() -> None:
    """When a batch has no more open Slices the others have the rest."""
    chosen = choose([candidate("a1", open_slices=1), candidate("a2", open_slices=3), candidate("a3", open_slices=0)], 9)
    assert chosen == ("a1", "a2", "a2", "a2")


def test_a_chooser_who_claims_one_at_a_time_is_fair() -> None:
    """It remembers what each has had."""
    three = [candidate(name, name, expires_at=DAY + n) for n, name in enumerate("abc")]
    chooser = Chooser()
    assert [chooser.choose(three, 1, now=0.0, rate=None) for _ in range(4)] == [("a",), ("b",), ("c",), ("a",)]


def test_nothing_to_choose_from_is_nothing_chosen() -> None:
    """Neither an empty backlog nor a full worker is a fault."""
    assert choose([], 5) == ()
    assert choose([candidate("a")], 0) == ()


def test_organisations_share_tokens_by_weight() -> None:
    """Not Slices: one whose lines are ten times as long gets a tenth as many, and one of weight three three times."""
    few = candidate("a", "a", open_slices=10_000, slice_tokens=1000)
    many = candidate("b", "b", open_slices=10_000, slice_tokens=100)
    heavy = candidate("c", "c", open_slices=10_000, slice_tokens=100, weight=3)
    times = Counter(choose([few, many, heavy], 2050))
    assert times["b"] == pytest.approx(10 * times["a"], rel=0.01)
    assert times["c"] == pytest.approx(3 * times["b"], rel=0.01)


def test_who_was_away_saves_nothing_up() -> None:
    """An organisation that comes back gets its share from now on, and not what it did not ask for."""
    here, back = candidate("a", "a", open_slices=1000), candidate("b", "b", open_slices=1000)
    chooser = Chooser()
    chooser.choose([here, back], 10, now=0.0, rate=None)
    chooser.choose([here], 100, now=0.0, rate=None)
    assert Counter(chooser.choose([here, back], 10, now=0.0, rate=None)) == {"a": 5, "b": 5}


def test_a_deadline_at_risk_goes_first() -> None:
    """With what stands before it; the rest waits, and takes turns again once there is time for all."""
    near = candidate("near", open_slices=2, expires_at=100)
    tight = candidate("tight", open_slices=6, expires_at=101)
    calm = candidate("calm", open_slices=2)
    assert choose([calm, tight, near], 9, rate=0.085) == ("near", "near", *["tight"] * 6, "calm")
    assert choose([calm, tight, near], 4, rate=0.2) == ("near", "tight", "calm", "near")


CANDIDATES = st.lists(
    st.builds(
        candidate,
        st.uuids().map(str),
        st.sampled_from("abc"),
        open_slices=st.integers(0, 5),
        expires_at=st.integers(0, 9),
        created_at=st.integers(0, 3),
        slice_tokens=st.integers(1, 9),
    ),
    max_size=12,
    unique_by=lambda c: c.batch_id,
)


@given(CANDIDATES, st.integers(0, 70), st.none() | st.floats(0.1, 10))
def test_every_slice_is_chosen_once(candidates: list[Candidate], slices: int, rate: float | None) -> None:
    """Never more than there are, never fewer than were asked for while there are some."""
    times = Counter(choose(candidates, slices, rate=rate))
    there = {c.batch_id: c.open_slices for c in candidates}
    assert all(times[batch_id] <= there[batch_id] for batch_id in times)
    assert times.total() == min(slices, sum(there.values()))


def run(
    batches: Sequence[Candidate], *, rate: float, until: float, at_once: int = 4, is_told: bool = True
) -> dict[str, list[float]]:
    """Return when each Slice of each batch was done, by a backend that does `rate` tokens a second, and no more.

    Where the chooser is not told that rate, its batches take turns.
    """
    chooser, now = Chooser(), 0.0
    left = {c.batch_id: c for c in batches}
    done: dict[str, list[float]] = defaultdict(list)
    while now < until:
        live = [c for c in left.values() if c.open_slices and c.created_at <= now < c.expires_at]
        chosen = chooser.choose(live, at_once, now=now, rate=rate if is_told else None)
        for batch_id in chosen:
            now += left[batch_id].slice_tokens / rate
            left[batch_id] = replace(left[batch_id], open_slices=left[batch_id].open_slices - 1)
            done[batch_id].append(now)
        now += 0.0 if chosen else 1.0
    return done


def test_a_small_batch_is_not_stuck_behind_a_large_one() -> None:
    """While there is time for both it takes at most twice as long as alone, in the same organisation."""
    small = candidate("small", open_slices=40, slice_tokens=100, created_at=10, expires_at=2 * DAY)
    large = candidate("large", open_slices=4000, slice_tokens=100)
    [alone, beside] = [run(batches, rate=100.0, until=5_000.0)["small"] for batches in ([small], [large, small])]
    assert beside[-1] - 10 <= 2.0 * (alone[-1] - 10) + 8  # what was claimed before it came: four Slices


def overloaded(seed: int) -> tuple[list[Candidate], float]:
    """Return batches that come one after the other, and a rate at which they are 1.2 times what can be done."""
    draw = random.Random(seed)  # noqa: S311 - the same batches each time
    batches = []
    for n in range(40):
        created, window = draw.uniform(0, 3000), draw.uniform(400, 2000)
        batches.append(
            candidate(
                str(n),
                open_slices=draw.randint(5, 60),
                slice_tokens=draw.choice([50, 100, 200]),
                created_at=created,
                expires_at=created + window,
            )
        )
    return batches, sum(c.tokens for c in batches) / 1.2 / 4000


def in_time(batches: Sequence[Candidate], *, rate: float, is_told: bool) -> float:
    """Return how many Slices are done before their deadlines, as a part of what the oracle gets done."""
    done = run(batches, rate=rate, until=6000.0, is_told=is_told)
    count = sum(at <= c.expires_at for c in batches for at in done[c.batch_id])
    return count / _oracle(batches, rate=rate, until=6000.0)


@pytest.mark.parametrize("seed", range(5))
def test_at_overload_lines_are_done_in_time_as_by_an_oracle(seed: int) -> None:
    """Of 1.2 times what can be done, at least 0.97 of what earliest deadline first gets done before its deadline."""
    batches, rate = overloaded(seed)
    assert in_time(batches, rate=rate, is_told=True) >= 0.97


def test_turns_alone_would_lose_lines_at_overload() -> None:
    """Without a rate, and so without any deadline at risk, less is done in time."""
    games = [overloaded(seed) for seed in range(5)]
    assert sum(in_time(batches, rate=rate, is_told=False) for batches, rate in games) / len(games) < 0.97


def _oracle(batches: Sequence[Candidate], *, rate: float, until: float) -> int:
    """Return how many Slices earliest deadline first gets done in time; it knows every batch's end exactly."""
    now, in_time = 0.0, 0
    left = {c.batch_id: c.open_slices for c in batches}
    while now < until:
        live = [c for c in batches if left[c.batch_id] and c.created_at <= now]
        live = [c for c in live if now + c.slice_tokens / rate <= c.expires_at]
        if not live:
            now += 1.0
            continue
        first = min(live, key=lambda c: c.expires_at)
        now += first.slice_tokens / rate
        left[first.batch_id] -= 1
        in_time += 1
    return in_time


def test_a_higher_priority_goes_first() -> None:
    """Within an organisation all Slices of the higher go before any of the lower; of equals it is as ever."""
    high = [candidate("h1", priority=1, open_slices=2, expires_at=3 * DAY), candidate("h2", priority=1, open_slices=1)]
    chosen = choose([candidate("low", priority=-1, open_slices=1), candidate("mid", open_slices=1), *high], 9)
    assert chosen == ("h2", "h1", "h1", "mid", "low")


def test_a_priority_outweighs_a_deadline_at_risk() -> None:
    """What the owner says goes before what we estimate: a lower batch at risk waits all the same."""
    risky = candidate("risky", open_slices=9, expires_at=10)
    assert choose([risky, candidate("high", priority=1, open_slices=2)], 4, rate=1.0) == (
        "high",
        "high",
        "risky",
        "risky",
    )


def test_what_goes_before_puts_deadlines_at_risk() -> None:
    """Whether a deadline is at risk counts what comes before it by priority."""
    pair = [candidate("near", open_slices=2, expires_at=100), candidate("far", open_slices=2, expires_at=200)]
    first = candidate("first", priority=1, open_slices=1, slice_tokens=95)
    assert choose(pair, 4, rate=1.0) == ("near", "far", "near", "far")
    assert choose([*pair, first], 5, rate=1.0) == ("first", "near", "near", "far", "far")


def test_a_priority_is_none_of_other_organisations_affair() -> None:
    """Organisations share as ever, and of equals the nearest deadline is served first."""
    urgent = candidate("b", "b", priority=100, expires_at=2 * DAY)
    assert choose([candidate("a", "a", priority=-100), urgent], 4) == ("a", "b", "a", "b")
    late = candidate("a late", "a", priority=100, expires_at=9 * DAY)
    assert choose([candidate("a near", "a", expires_at=1), late, urgent], 2) == ("a late", "b")
