"""The numbers of the contract."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from batchmill.spec.limits import DEEPEST, KIMI, OPEN, PROFILES, Limits


def test_the_default_profile_is_kimis() -> None:
    """The published limits, number by number."""
    assert Limits() == KIMI
    assert KIMI.endpoints == (KIMI.default_endpoint,) == ("/v1/chat/completions",)
    assert (KIMI.window_min, KIMI.window_max) == (43_200, 604_800)
    assert KIMI.max_input_bytes == 104_857_600
    assert KIMI.max_files == 1_000
    assert (KIMI.metadata_pairs, KIMI.metadata_key, KIMI.metadata_value) == (16, 64, 512)
    assert (KIMI.models_per_file, KIMI.max_lines) == (1, None)
    assert KIMI.max_json_body == 4_194_304


def test_the_open_profile_is_for_owners_of_the_hardware() -> None:
    """Five endpoints, windows from a minute to a month, 2 GiB, several models."""
    assert len(OPEN.endpoints) == 5
    assert (OPEN.window_units, OPEN.window_min, OPEN.window_max) == (("m", "h", "d"), 60, 2_592_000)
    assert OPEN.max_input_bytes == 2_147_483_648
    assert OPEN.models_per_file is None
    assert PROFILES == {"kimi": KIMI, "open": OPEN}


def test_every_limit_can_be_set_and_none_changed_later() -> None:
    """A profile is a value: overriding one makes another."""
    assert replace(KIMI, max_lines=5).max_lines == 5
    with pytest.raises(FrozenInstanceError):
        KIMI.max_lines = 5  # type: ignore[misc]  # what the test is about


def test_a_depth_that_the_parsers_cannot_bear_is_refused() -> None:
    """The bound on nesting must hold before a parser gives up by itself."""
    with pytest.raises(ValueError, match="max_depth"):
        replace(KIMI, max_depth=DEEPEST + 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_lines": 0},
        {"extension": ""},
        {"endpoints": ()},
        {"window_min": 2, "window_max": 1},
        {"default_endpoint": "/v1/other"},
        {"window_units": ("w",)},
    ],
)
def test_limits_that_contradict_themselves_are_refused(wrong: dict[str, Any]) -> None:
    """The sentence begins with the name of the limit."""
    with pytest.raises(ValueError, match=rf"^{next(iter(wrong))}: "):
        replace(KIMI, **wrong)
