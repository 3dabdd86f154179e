"""Orders for keys."""

import pytest

from batchmill.spec.errors import ApiError
from batchmill.spec.keys import LONGEST_SECONDS, KeyOrder, parse_key_order, parse_overlap
from batchmill.spec.scopes import DEFAULT_SCOPES, Scope


def test_an_order_may_say_nothing() -> None:
    """Then the key can read and write, and lasts; members that are null say nothing, and unknown ones are ignored."""
    plain = KeyOrder(name=None, scopes=DEFAULT_SCOPES, expires_in=None)
    for value in ({}, {"name": None, "scopes": None, "expires_in": None}, {"org": "other"}):
        assert parse_key_order(value) == plain
    assert parse_overlap({}) == parse_overlap({"overlap": None}) == 86_400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90d", 7_776_000), ("24h", 86_400), ("30m", 1_800), ("5s", 5), ("7", 7), (7, 7), (7.0, 7)],
    ids=repr,
)
def test_a_duration_is_a_text_or_seconds(text: object, seconds: int) -> None:
    """In both places where one may stand."""
    assert parse_key_order({"expires_in": text}).expires_in == seconds
    assert parse_overlap({"overlap": text}) == seconds


def test_an_order_says_what_the_key_may() -> None:
    """Name and scopes as they are given; scopes said twice are said once."""
    order = parse_key_order({"name": "ci é", "scopes": ["admin", "read", "read"]})
    assert (order.name, order.scopes) == ("ci é", {Scope.READ, Scope.ADMIN})
    assert parse_overlap({"overlap": 0}) == 0
    assert parse_overlap({"overlap": LONGEST_SECONDS}) == LONGEST_SECONDS


@pytest.mark.parametrize(
    ("value", "param", "code"),
    [
        ([], None, "invalid_type"),
        ({"name": 1}, "name", "invalid_type"),
        ({"name": ""}, "name", "invalid_value"),
        ({"name": " ci"}, "name", "invalid_value"),
        ({"name": "a\tb"}, "name", "invalid_value"),
        ({"name": "x" * 101}, "name", "invalid_value"),
        ({"scopes": "read"}, "scopes", "invalid_type"),
        ({"scopes": []}, "scopes", "invalid_value"),
        ({"scopes": ["root"]}, "scopes", "invalid_value"),
        ({"scopes": [1]}, "scopes", "invalid_value"),
        ({"scopes": [["read"]]}, "scopes", "invalid_value"),
        ({"expires_in": 0}, "expires_in", "invalid_value"),
        ({"expires_in": "0d"}, "expires_in", "invalid_value"),
        ({"expires_in": -1}, "expires_in", "invalid_value"),
        ({"expires_in": "1w"}, "expires_in", "invalid_value"),
        ({"expires_in": "١d"}, "expires_in", "invalid_value"),
        ({"expires_in": "soon"}, "expires_in", "invalid_value"),
        ({"expires_in": LONGEST_SECONDS + 1}, "expires_in", "invalid_value"),
        ({"expires_in": "9999999999d"}, "expires_in", "invalid_value"),
        ({"expires_in": True}, "expires_in", "invalid_type"),
        ({"expires_in": 1.5}, "expires_in", "invalid_type"),
        ({"expires_in": [1]}, "expires_in", "invalid_type"),
    ],
    ids=repr,
)
def test_what_is_no_order_is_refused(value: object, param: str | None, code: str) -> None:
    """The first thing that is wrong, by its name."""
    with pytest.raises(ApiError) as fault:
        parse_key_order(value)
    assert (fault.value.status, fault.value.param, fault.value.code) == (400, param, code)


@pytest.mark.parametrize("value", [[], {"overlap": -1}, {"overlap": "x"}, {"overlap": False}], ids=repr)
def test_what_is_no_overlap_is_refused(value: object) -> None:
    """As elsewhere."""
    with pytest.raises(ApiError):
        parse_overlap(value)
