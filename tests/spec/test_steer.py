"""What may be said of a batch on its way, and how a pause is told."""

from typing import Any

import pytest

from batchmill.spec.errors import ApiError
from batchmill.spec.limits import KIMI
from batchmill.spec.states import Status
from batchmill.spec.steer import STEERED, parse_priority, parse_window, paused, says_paused


def test_a_pause_names_the_end_of_the_window() -> None:
    """Whoever reads why a paused batch waits sees until when it may wait."""
    assert paused(1_800_000_000) == "paused; its window closes at 2027-01-15T08:00:00Z"
    assert says_paused(paused(1))
    assert not says_paused("queued behind 1 batch")
    assert not says_paused(None)


def test_what_is_steered_is_what_still_sends() -> None:
    """Only before its lines are all sent a batch can be steered."""
    assert {Status.VALIDATING, Status.IN_PROGRESS} == STEERED


def test_a_window_is_what_create_takes() -> None:
    """The text is kept as it was written, beside its length."""
    assert parse_window({"completion_window": "2d", "more": 1}, limits=KIMI) == ("2d", 2 * 86_400)


@pytest.mark.parametrize(("written", "number"), [(-100, -100), (0, 0), (100, 100), (5.0, 5)])
def test_a_priority_is_an_integer_of_json(written: object, number: int) -> None:
    """From the least to the most; JSON knows one kind of number."""
    read = parse_priority({"priority": written}, limits=KIMI)
    assert (read, type(read)) == (number, int)


@pytest.mark.parametrize(
    ("parse", "body", "param", "code"),
    [
        (parse_window, [], None, "invalid_type"),
        (parse_window, {}, "completion_window", "missing_required_parameter"),
        (parse_window, {"completion_window": 24}, "completion_window", "invalid_type"),
        (parse_window, {"completion_window": "8d"}, "completion_window", "invalid_value"),
        (parse_priority, None, None, "invalid_type"),
        (parse_priority, {}, "priority", "missing_required_parameter"),
        (parse_priority, {"priority": True}, "priority", "invalid_type"),
        (parse_priority, {"priority": 0.5}, "priority", "invalid_type"),
        (parse_priority, {"priority": "5"}, "priority", "invalid_type"),
        (parse_priority, {"priority": 101}, "priority", "invalid_value"),
        (parse_priority, {"priority": -101}, "priority", "invalid_value"),
    ],
)
def test_what_is_wrong_is_named(parse: Any, body: object, param: str | None, code: str) -> None:  # noqa: ANN401 - one of two
    """The first thing wrong is a 400 with the name of the member."""
    with pytest.raises(ApiError) as raised:
        parse(body, limits=KIMI)
    assert (raised.value.status, raised.value.param, raised.value.code) == (400, param, code)
