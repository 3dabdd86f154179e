"""The order for a batch."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.create import CreateOrder, parse_create
from batchmill.spec.errors import ApiError
from batchmill.spec.limits import KIMI, OPEN

GOOD = {"input_file_id": "file_1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}


def refused(value: object) -> ApiError:
    """Return the error of an order that must be refused."""
    with pytest.raises(ApiError) as caught:
        parse_create(value, limits=KIMI)
    assert caught.value.status == 400
    return caught.value


def test_an_order_is_read() -> None:
    """Every member arrives, the window both as text and in seconds."""
    after = {"anchor": "created_at", "seconds": 3600}
    order = parse_create({**GOOD, "metadata": {"a": "b"}, "output_expires_after": after, "x": 1}, limits=KIMI)
    assert order == CreateOrder(
        input_file_id="file_1",
        endpoint="/v1/chat/completions",
        completion_window="24h",
        window_seconds=86_400,
        metadata={"a": "b"},
        output_expires_after=3600,
    )


def test_what_the_published_sample_leaves_out_may_be_left_out() -> None:
    """Without an endpoint it is chat; null metadata and expiry are none."""
    order = parse_create(
        {"input_file_id": "file_1", "completion_window": "12h", "metadata": None, "output_expires_after": None},
        limits=KIMI,
    )
    assert (order.endpoint, order.metadata, order.output_expires_after) == ("/v1/chat/completions", None, None)


@pytest.mark.parametrize("value", [None, [], "x", 5, [GOOD]])
def test_an_order_is_an_object(value: object) -> None:
    """Any other JSON is of the wrong type."""
    error = refused(value)
    assert (error.code, error.param) == ("invalid_type", None)


@pytest.mark.parametrize("name", ["input_file_id", "completion_window"])
def test_required_members_are_named_when_missing(name: str) -> None:
    """The answer says which one."""
    error = refused({key: value for key, value in GOOD.items() if key != name})
    assert (error.code, error.param) == ("missing_required_parameter", name)


@pytest.mark.parametrize("name", ["input_file_id", "endpoint", "completion_window"])
@pytest.mark.parametrize("value", [None, 86400, ["24h"], True])
def test_members_of_the_wrong_type_are_named(name: str, value: object) -> None:
    """A number is no window, and null no file."""
    error = refused({**GOOD, name: value})
    assert (error.code, error.param) == ("invalid_type", name)


@pytest.mark.parametrize(
    "endpoint", ["", "/v1/nope", "/v1/embeddings", "/v1/chat/completions/", "http://x/v1/chat/completions"]
)
def test_other_endpoints_are_refused(endpoint: str) -> None:
    """Only the profile's endpoints, to the letter."""
    error = refused({**GOOD, "endpoint": endpoint})
    assert (error.code, error.param) == ("invalid_value", "endpoint")


def test_the_open_profile_takes_more_endpoints() -> None:
    """What is an error in one profile is an order in the other."""
    assert parse_create({**GOOD, "endpoint": "/v1/embeddings"}, limits=OPEN).endpoint == "/v1/embeddings"


def test_a_window_out_of_range_is_refused() -> None:
    """The grammar is that of the windows."""
    assert refused({**GOOD, "completion_window": "8d"}).param == "completion_window"


@pytest.mark.parametrize("file_id", ["file_\0", "file_é", "file_\n"])
def test_an_id_that_no_file_can_have_is_unknown(file_id: str) -> None:
    """It is answered like any unknown file, and never reaches the database."""
    error = refused({**GOOD, "input_file_id": file_id})
    assert (error.code, error.param) == ("invalid_value", "input_file_id")


@pytest.mark.parametrize(
    ("metadata", "code", "param"),
    [
        ("x", "invalid_type", "metadata"),
        ([], "invalid_type", "metadata"),
        ({str(n): "" for n in range(17)}, "invalid_value", "metadata"),
        ({"": "x"}, "invalid_value", "metadata."),
        ({"k" * 65: "x"}, "invalid_value", "metadata." + "k" * 64),
        ({"k": 5}, "invalid_type", "metadata.k"),
        ({"k": None}, "invalid_type", "metadata.k"),
        ({"k": {}}, "invalid_type", "metadata.k"),
        ({"k": "v" * 513}, "invalid_value", "metadata.k"),
    ],
)
def test_metadata_beyond_the_limits_is_refused(metadata: object, code: str, param: str) -> None:
    """The answer names the pair."""
    error = refused({**GOOD, "metadata": metadata})
    assert (error.code, error.param) == (code, param)


def test_metadata_at_the_limits_is_kept() -> None:
    """Sixteen pairs of 64 and 512 characters, whatever they spell."""
    metadata = {f"{n:064}": "值" * 512 for n in range(15)} | {"__proto__": "\0"}
    assert parse_create({**GOOD, "metadata": metadata}, limits=KIMI).metadata == metadata


@pytest.mark.parametrize(
    ("after", "code", "param"),
    [
        (3600, "invalid_type", "output_expires_after"),
        ({"seconds": 3600}, "missing_required_parameter", "output_expires_after.anchor"),
        ({"anchor": "now", "seconds": 3600}, "invalid_value", "output_expires_after.anchor"),
        ({"anchor": "created_at"}, "missing_required_parameter", "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": "3600"}, "invalid_type", "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": 3600.5}, "invalid_type", "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": float("inf")}, "invalid_type", "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": 1e300}, "invalid_value", "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": True}, "invalid_type", "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": 3599}, "invalid_value", "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": 2_592_001}, "invalid_value", "output_expires_after.seconds"),
    ],
)
def test_an_expiry_of_the_output_is_checked(after: object, code: str, param: str) -> None:
    """An hour to thirty days, from the file's creation."""
    error = refused({**GOOD, "output_expires_after": after})
    assert (error.code, error.param) == (code, param)


def test_a_whole_number_may_have_a_point() -> None:
    """3600.0 is 3600, as JSON Schema has it."""
    order = parse_create({**GOOD, "output_expires_after": {"anchor": "created_at", "seconds": 3600.0}}, limits=KIMI)
    assert repr(order.output_expires_after) == "3600"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "metadata", "output_expires_after"]), JSON) | JSON)
def test_any_json_is_an_order_or_refused(value: object) -> None:
    """Nothing that a client sends is a fault of ours."""
    with suppress(ApiError):
        assert isinstance(parse_create(value, limits=OPEN), CreateOrder)
