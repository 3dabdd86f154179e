"""Days, and what is used in them."""

from base64 import urlsafe_b64encode
from decimal import Decimal

import pytest

from batchmill.spec.errors import ApiError
from batchmill.spec.objects import Usage
from batchmill.spec.prices import Cost
from batchmill.spec.usage import (
    DAY_SECONDS,
    DayUse,
    Place,
    Used,
    day_end,
    day_of,
    day_text,
    parse_place,
    read_days,
    time_text,
    total_tokens,
    total_used,
)

TODAY = day_of(1_800_000_000)
TOKENS = Usage(input_tokens=10, cached_tokens=2, output_tokens=5, reasoning_tokens=1)


def test_a_day_ends_at_midnight() -> None:
    """Up to the last moment it is this day; midnight is the next."""
    end = day_end(TODAY)
    assert (day_text(TODAY), time_text(end)) == ("2027-01-15", "2027-01-16T00:00:00Z")
    assert (day_of(end - 0.001), day_of(end), day_of(end - DAY_SECONDS)) == (TODAY, TODAY + 1, TODAY)
    assert (day_text(0), day_of(0.0)) == ("1970-01-01", 0)


@pytest.mark.parametrize(
    ("first", "last", "days"),
    [
        (None, None, (TODAY - 29, TODAY)),
        (None, "1970-01-03", (0, 2)),
        ("2027-01-15", None, (TODAY, TODAY)),
        ("2024-02-29", "2024-03-01", (19782, 19783)),
        ("2026-01-16", "2027-01-15", (TODAY - 364, TODAY)),
    ],
)
def test_days_are_asked_for_by_their_dates(first: str | None, last: str | None, days: tuple[int, int]) -> None:
    """Until today and 30 of them, unless the query says other."""
    assert read_days(first, last, today=TODAY, most=365) == days


@pytest.mark.parametrize(
    ("first", "last", "param"),
    [
        ("2027-01-16", None, "from"),  # after today
        ("2027-01-02", "2027-01-01", "from"),
        ("2026-01-15", "2027-01-15", "from"),  # 366 days
        ("2026-02-30", None, "from"),
        ("20270101", None, "from"),
        ("2027-W01-1", None, "from"),
        ("", None, "from"),
        (None, "1969-12-31", "to"),
        (None, "0000-01-01", "to"),
        (None, "٢٠٢٧-٠١-٠١", "to"),
    ],
)
def test_what_is_no_span_of_days_is_refused(first: str | None, last: str | None, param: str) -> None:
    """Each with the member that is wrong."""
    with pytest.raises(ApiError) as fault:
        read_days(first, last, today=TODAY, most=365)
    assert (fault.value.status, fault.value.param, fault.value.code) == (400, param, "invalid_value")


@pytest.mark.parametrize(
    "place",
    [Place(0, "", ""), Place(TODAY, "key_1", "m"), Place(TODAY, "", 'ünï "c/o:d,e\n')],
    ids=["least", "m", "odd"],
)
def test_a_cursor_is_the_place_that_it_was_made_of(place: Place) -> None:
    """Printable ASCII, whatever a model is called."""
    text = place.text()
    assert text.isascii()
    assert text.isprintable()
    assert parse_place(text) == place


def test_an_entry_knows_its_place() -> None:
    """By day, key and model; keys that nobody tells apart come first."""
    found = [DayUse(day=2, model="m", used=Used(), key_id=key) for key in ("key_1", None)]
    assert sorted(use.place for use in found) == [Place(2, "", "m"), Place(2, "key_1", "m")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "%",
        "\x7f",
        "bm8",
        Place(1, "", "m").text() + "=",
        Place(1, "", "m").text() + "\n",
        Place(-1, "", "m").text(),
        Place(2**62, "", "m").text(),
        Place(1, "a\0", "").text(),
        Place(1, "m", "\0").text(),
        urlsafe_b64encode(b'[1, "m", ""]').decode(),
        urlsafe_b64encode(b"[" * 3000).decode(),
        urlsafe_b64encode(b'[1,"\xff",""]').decode(),
    ],
)
def test_a_text_that_is_no_cursor_is_refused(text: str) -> None:
    """Never is it read as "from the top"."""
    with pytest.raises(ApiError) as fault:
        parse_place(text)
    assert (fault.value.status, fault.value.param, fault.value.code) == (400, "after", "invalid_value")


def test_uses_add_up() -> None:
    """Each number by itself; of nothing it is nothing."""
    assert total_tokens([]) == Usage()
    assert total_used([]) == Used()
    one = Used(requests=3, failed=1, tokens=TOKENS)
    twice = Usage(input_tokens=20, cached_tokens=4, output_tokens=10, reasoning_tokens=2)
    assert total_used([one, one]) == Used(requests=6, failed=2, tokens=twice)


def test_a_use_is_shown_with_every_key() -> None:
    """What is not known is null."""
    used = Used(requests=3, failed=1, tokens=TOKENS)
    bare = DayUse(day=TODAY, model="m", used=used).wire(None)
    assert bare == {
        "day": "2027-01-15",
        "key_id": None,
        "key_name": None,
        "model": "m",
        "requests": 3,
        "failed": 1,
        "input_tokens": 10,
        "cached_tokens": 2,
        "output_tokens": 5,
        "reasoning_tokens": 1,
        "cost": None,
    }
    named = DayUse(day=TODAY, model="m", used=used, key_id="key_1", key_name="ci")
    told = {"key_id": "key_1", "key_name": "ci", "cost": {"amount": 0.5, "currency": "EUR"}}
    assert named.wire(Cost(amount=Decimal("0.5"), currency="EUR")) == bare | told
