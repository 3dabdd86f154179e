"""Which batches a worker claims Slices from."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from batchmill.schedule.choose import Candidate, choose


def candidate(
    batch_id: str, organisation: str = "a", open_slices: int = 9, expires_at: float = 100, created_at: float = 0
) -> Candidate:
    """Return a candidate with the usual values."""
    return Candidate(
        batch_id=batch_id,
        organisation=organisation,
        open_slices=open_slices,
        expires_at=expires_at,
        created_at=created_at,
    )


def test_organisations_take_turns_whatever_they_have_queued() -> None:
    """A thousand batches of one organisation do not keep another one waiting."""
    crowd = [candidate(f"a{n:03}", "a", expires_at=n) for n in range(1000)]
    chosen = choose([*crowd, candidate("b", "b", expires_at=5000)], 4)
    assert chosen == ("a000", "b", "a001", "b")


def test_batches_of_an_organisation_take_turns_by_deadline() -> None:
    """The nearest deadline leads, then the older batch, and all of them move."""
    chosen = choose(
        [candidate("late", expires_at=200), candidate("young", created_at=2), candidate("old", created_at=1)], 6
    )
    assert chosen == ("old", "young", "late", "old", "young", "late")


def test_a_batch_is_chosen_for_as_many_slices_as_it_has() -> None:
    """When a batch has no more open Slices the others have the rest."""
    chosen = choose([candidate("a1", open_slices=1), candidate("a2", open_slices=3), candidate("a3", open_slices=0)], 9)
    assert chosen == ("a1", "a2", "a2", "a2")


def test_the_turn_moves_the_beginning_on() -> None:
    """A caller that claims one Slice at a time is fair if it counts its calls."""
    three = [candidate("a", "a", expires_at=1), candidate("b", "b", expires_at=2), candidate("c", "c", expires_at=3)]
    assert [choose(three, 1, turn=turn) for turn in range(4)] == [("a",), ("b",), ("c",), ("a",)]


def test_nothing_to_choose_from_is_nothing_chosen() -> None:
    """Neither an empty backlog nor a full worker is a fault."""
    assert choose([], 5, turn=3) == ()
    assert choose([candidate("a")], 0) == ()


CANDIDATES = st.lists(
    st.builds(
        candidate,
        batch_id=st.uuids().map(str),
        organisation=st.sampled_from("abc"),
        open_slices=st.integers(0, 5),
        expires_at=st.integers(0, 3),
        created_at=st.integers(0, 3),
    ),
    unique_by=lambda c: c.batch_id,
)


@given(CANDIDATES, st.integers(0, 40))
def test_choosing_is_fair_complete_and_deterministic(candidates: list[Candidate], slices: int) -> None:
    """As many as there are, none too often, no organisation more than one ahead of one that still has work."""
    chosen = choose(candidates, slices)
    assert choose(candidates[::-1], slices) == chosen
    assert len(chosen) == min(slices, sum(c.open_slices for c in candidates))
    times = Counter(chosen)
    assert all(times[c.batch_id] <= c.open_slices for c in candidates)
    owned: dict[str, int] = {c.organisation: 0 for c in candidates}
    left = dict.fromkeys(owned, 0)
    for c in candidates:
        owned[c.organisation] += times[c.batch_id]
        left[c.organisation] += c.open_slices - times[c.batch_id]
    assert all(owned[one] >= max(owned.values()) - 1 for one, rest in left.items() if rest)
