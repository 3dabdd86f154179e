"""Models as configured: names, what may be batched, the byte splice, locked parameters."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.models import Catalogue, ModelFacts, refusal, with_model

_CATALOGUE = Catalogue([ModelFacts(name="big", aliases=("b", "b-latest")), ModelFacts(name="live", batch=False)])


def test_an_alias_stands_for_its_target() -> None:
    """An alias resolves to the configured model, any other name to itself."""
    assert [_CATALOGUE.resolve(name) for name in ("b", "b-latest", "big", "other")] == ["big", "big", "big", "other"]


@pytest.mark.parametrize(
    ("name", "offered"), [("big", True), ("b", True), ("live", False), ("other", False), ("gone", False)]
)
def test_a_name_is_offered_when_its_target_is_served_and_may_be_batched(name: str, *, offered: bool) -> None:
    """A batch may use a name that stands for a served model, unless that is for live calls only."""
    assert _CATALOGUE.offers(name, {"big", "live"}) is offered


def test_where_nobody_says_what_is_served_only_live_models_are_refused() -> None:
    """A check without a server at hand takes any name but that of a model that is never batched."""
    assert _CATALOGUE.offers("any", None)
    assert not _CATALOGUE.offers("live", None)
    assert _CATALOGUE.is_configured("big")
    assert not _CATALOGUE.is_configured("b")


def test_every_name_of_a_served_model_is_listed() -> None:
    """A model is followed by its aliases; a served name that is another's alias stands for that one only."""
    names = [(name, facts.name) for name, facts in _CATALOGUE.names(["b-latest", "big", "x"])]
    assert names == [("big", "big"), ("b", "big"), ("b-latest", "big"), ("x", "x")]
    assert not list(_CATALOGUE.names(["b"]))


@pytest.mark.parametrize("aliases", [("big",), ("b",)])
def test_a_name_stands_for_one_model(aliases: tuple[str, ...]) -> None:
    """An alias that is another model, or another's alias, is refused."""
    with pytest.raises(ValueError, match=r"^models\.other\.aliases: "):
        Catalogue([ModelFacts(name="big", aliases=("b",)), ModelFacts(name="other", aliases=aliases)])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"b","n":1}', b'{"model":"big","n":1}'),
        (b'{ "n" : 1e2 , "model" :\t"b" }', b'{ "n" : 1e2 , "model" :\t"big" }'),
        (b'{"model":"b","model":"b"}', b'{"model":"big","model":"big"}'),
        (b'{"model":[1,"b"],"model":"b"}', b'{"model":[1,"b"],"model":"big"}'),
        (b'{"mod\\u0065l":"\\u0062"}', b'{"mod\\u0065l":"big"}'),
        (b'{"x":{"model":"b"},"y":["model","b"],"model":"b"}', b'{"x":{"model":"b"},"y":["model","b"],"model":"big"}'),
        (b'{"x":"\\"model\\":\\"b\\"","model":"b"}', b'{"x":"\\"model\\":\\"b\\"","model":"big"}'),
        (b'{"model": "big" }', b'{"model": "big" }'),
        (b'{"model":"\\u0062ig"}', b'{"model":"\\u0062ig"}'),
    ],
)
def test_the_model_is_spliced_in(body: bytes, expected: bytes) -> None:
    """Only the model's own strings at the top change; a body that names the model already is untouched."""
    assert with_model(body, "big") == expected


def test_an_odd_target_is_written_as_json() -> None:
    """The target is spliced in as a JSON string, whatever its characters are."""
    assert json.loads(with_model(b'{"model":"b"}', 'a"\\\n☃')) == {"model": 'a"\\\n☃'}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("model"), inner, max_size=3),
    max_leaves=10,
)
_SPACE = st.sampled_from(["", " ", "\t", " \r\n "])


@given(
    before=st.lists(st.tuples(st.text(), _JSON), max_size=4),
    after=st.lists(st.tuples(st.text(), _JSON), max_size=4),
    space=_SPACE,
    ascii_only=st.booleans(),
)
def test_no_other_byte_changes(
    before: list[tuple[str, object]], after: list[tuple[str, object]], space: str, *, ascii_only: bool
) -> None:
    """Around the model every byte stays, whatever stands there."""

    def text(members: list[tuple[str, object]]) -> list[str]:
        return [
            json.dumps(name, ensure_ascii=ascii_only) + space + ":" + space + json.dumps(value, ensure_ascii=ascii_only)
            for name, value in members
            if name != "model"
        ]

    def body(model: str) -> bytes:
        members = [*text(before), f'"model"{space}:{space}"{model}"', *text(after)]
        inner = f"{space},{space}".join(members)
        return f"{{{space}{inner}{space}}}".encode()

    assert with_model(body("b"), "the-target") == body("the-target")


_LOCKED = ModelFacts(name="big", locked={"temperature": (1.0, 0.6), "n": (1,), "top": ("a", True), "never": ()})


@pytest.mark.parametrize(
    "members",
    [
        '"temperature":1',
        '"temperature": 1.0 ',
        '"temperature":10e-1',
        '"temperature":0.6,"n":1.0',
        '"temperature":null',
        '"top":"a"',
        '"top":true',
        '"x":{"temperature":2}',
        '"x":1',
    ],
)
def test_an_allowed_value_passes(members: str) -> None:
    """A locked parameter may be left out, null, or have one of its values in any spelling."""
    assert refusal(b'{"model":"big",%b}' % members.encode(), _LOCKED) is None


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ('"temperature":0.7', "temperature"),
        ('"temperature":"1"', "temperature"),
        ('"temperature":true', "temperature"),
        ('"temperature":1,"n":2', "n"),
        ('"temperature":2,"temperature":1', "temperature"),
        ('"temperatur\\u0065":2', "temperature"),
        ('"n":' + "1" * 5000, "n"),
        ('"n":[1]', "n"),
        ('"top":1', "top"),
        ('"never":0', "never"),
    ],
)
def test_any_other_value_is_refused(members: str, param: str) -> None:
    """The refusal is a 400 that names the parameter, each time that it stands there."""
    error = refusal(b'{"model":"big",%b}' % members.encode(), _LOCKED)
    assert error is not None
    assert (error.status, error.type, error.code) == (400, "invalid_request_error", "invalid_value")
    assert error.param == param
    assert repr(param) in error.message


def test_nothing_is_locked_unless_configured() -> None:
    """A model without locks takes any value."""
    assert refusal(b'{"model":"m","temperature":9}', _CATALOGUE.facts("m")) is None
