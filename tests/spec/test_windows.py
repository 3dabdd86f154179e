"""The completion window."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.errors import ApiError
from batchmill.spec.limits import KIMI, OPEN
from batchmill.spec.windows import window_seconds

HOUR, DAY = 3_600, 86_400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12h", 12 * HOUR), ("24h", DAY), ("168h", 7 * DAY), ("1d", DAY), ("3d", 3 * DAY), ("7d", 7 * DAY)],
)
def test_kimis_windows_are_from_12_hours_to_7_days(text: str, seconds: int) -> None:
    """Both ends are allowed, in either unit."""
    assert window_seconds(text, KIMI) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("11h", "8d", "169h", "0.5d", "1w", "720m", "86400", "24", "1h", "-24h", "+24h", "24H", "1d12h", "024h", "0d"),
        *("٢٤h", "２４h", "24h\n", " 24h", "24h ", "", "h", "99999h", "100000h", "1e9h"),
    ],
)
def test_anything_else_is_refused_with_its_param(text: str) -> None:
    """The answer is a 400 that names the parameter and what is allowed."""
    with pytest.raises(ApiError) as caught:
        window_seconds(text, KIMI)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_value", "completion_window")
    assert "unit h or d, from 12h to 7d" in caught.value.message


@pytest.mark.parametrize(("text", "seconds"), [("1m", 60), ("90m", 5_400), ("30d", 30 * DAY), ("720h", 30 * DAY)])
def test_the_open_profile_adds_minutes(text: str, seconds: int) -> None:
    """From one minute to thirty days."""
    assert window_seconds(text, OPEN) == seconds


def test_a_range_that_no_unit_divides_is_spelt_in_seconds() -> None:
    """An operator's odd range is still told truthfully."""
    with pytest.raises(ApiError, match="from 90 seconds to 30d"):
        window_seconds("1m", replace(OPEN, window_min=90))


@given(st.integers(0, 200_000), st.sampled_from("mhd"), st.booleans())
def test_a_window_is_its_number_times_its_unit(number: int, unit: str, is_open: bool) -> None:
    """Accepted if and only if the unit is the profile's and the product is within its range."""
    chosen = OPEN if is_open else KIMI
    seconds = number * {"m": 60, "h": HOUR, "d": DAY}[unit]
    good = unit in chosen.window_units and chosen.window_min <= seconds <= chosen.window_max
    try:
        assert window_seconds(f"{number}{unit}", chosen) == seconds
    except ApiError:
        assert not good
    else:
        assert good


@given(st.text(max_size=8))
def test_no_text_is_more_than_refused(text: str) -> None:
    """Any text at all is a window or an ApiError."""
    with suppress(ApiError):
        assert KIMI.window_min <= window_seconds(text, KIMI) <= KIMI.window_max


@given(st.text(max_size=8) | st.from_regex(r"[0-9٠-٩]{1,6}[mhdwHD]?\n?", fullmatch=True))
def test_a_window_is_of_its_grammar_or_refused(text: str) -> None:
    """Whatever is accepted is plain digits without a leading zero and one of the units (contract c.4)."""
    with suppress(ApiError):
        assert KIMI.window_min <= window_seconds(text, KIMI) <= KIMI.window_max
        assert text.isascii()
        assert text[:-1].isdigit()
        assert text[0] != "0"
        assert text[-1] in "hd"
