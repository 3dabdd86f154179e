"""Repeated custom_ids, found one by one and in two passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec import repeats
from batchmill.spec.repeats import EveryId, Hashes, Watched


@given(st.lists(st.text(max_size=2)))
def test_two_passes_find_what_one_finds(ids: list[str]) -> None:
    """The same lines are told, with the same first use."""
    every, hashes = EveryId(), Hashes()
    told = [every.first(custom_id, number) for number, custom_id in enumerate(ids, 1)]
    assert {hashes.first(custom_id, number) for number, custom_id in enumerate(ids, 1)} <= {None}
    watched = Watched(hashes.repeated().watched)
    assert [watched.first(custom_id, number) for number, custom_id in enumerate(ids, 1)] == told


def test_of_very_many_repeated_ids_some_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a file of nothing but repetitions does not take the memory that one pass would."""
    monkeypatch.setattr(repeats, "_MOST_WATCHED", 10)
    hashes = Hashes()
    for number in range(100_000):
        hashes.first(str(number % 50_000), number)
    watched, others = hashes.repeated()
    assert 10 <= len(watched) < 1000
    assert len(watched) + others == 50_000
