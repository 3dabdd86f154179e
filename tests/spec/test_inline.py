"""Requests inside an order: split into lines with their own bytes, and refused by their place where they are none."""

import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.errors import ApiError
from batchmill.spec.fingerprint import inline_fingerprint
from batchmill.spec.inline import InlineReader
from batchmill.spec.limits import KIMI
from batchmill.spec.rules import UNREADABLE

CHAT = "/v1/chat/completions"
READER = InlineReader(limits=replace(KIMI, max_inline_requests=5, max_json_body=200))
FILLED = b'{"method":"POST","url":"/v1/chat/completions",'


def lines(*requests: bytes) -> list[bytes]:
    """Return the lines that these requests become."""
    return list(READER.read(b'{"requests":[%b]}' % b",".join(requests)).lines(CHAT))


def test_each_request_keeps_its_bytes() -> None:
    """Spacing, order, escapes, numbers and what is said twice stay as they were written."""
    whole = b'{ "body" : {"n":1.50e1, "s":"\\u00e9\xe9\x9b\xa8", "n":2},"url":"u","method":"GET", "custom_id":"a"}'
    assert lines(whole) == [whole + b"\n"]


def test_what_is_left_out_stands_in_front() -> None:
    """A request without method or url gets what every line of the batch has, before its own first member."""
    assert lines(b'{"custom_id":"a","body":{}}') == [FILLED + b'"custom_id":"a","body":{}}\n']
    assert lines(b'{"url":"u","custom_id":"a","body":{}}') == [
        b'{"method":"POST","url":"u","custom_id":"a","body":{}}\n'
    ]
    assert lines(b'{ "method":"M","custom_id":"a","body":{}}') == [
        b'{"url":"/v1/chat/completions", "method":"M","custom_id":"a","body":{}}\n'
    ]


def test_line_breaks_between_tokens_become_spaces() -> None:
    """A request that is spread over lines is one line; those written as escapes in a text are not touched."""
    spread = b'{\r\n "custom_id":"a\\n",\n\t"method":"POST","url":"u","body":{\r}\n}'
    assert lines(spread) == [b'{   "custom_id":"a\\n", \t"method":"POST","url":"u","body":{ } }\n']


def test_the_order_is_what_stands_beside_the_requests() -> None:
    """Its members are decoded, the ones that are nobody's left out."""
    found = READER.read(
        b'{"x":[1],"completion_window":"24h","metadata":{"a":"b"},"requests":[{"custom_id":"a","body":{}}]}'
    )
    assert found.members == {"completion_window": "24h", "metadata": {"a": "b"}}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"[]", None, "invalid_type"),
        (b"7", None, "invalid_type"),
        (b"{}", "requests", "missing_required_parameter"),
        (b'{"requests":null}', "requests", "invalid_type"),
        (b'{"requests":{}}', "requests", "invalid_type"),
        (b'{"requests":[]}', "requests", "invalid_value"),
        (b'{"requests":[1,1,1,1,1,1]}', "requests", "invalid_value"),
        (b'{"requests":[7]}', "requests[0]", "invalid_type"),
        (
            b'{"requests":[{"custom_id":"a","body":{}},{"body":{}}]}',
            "requests[1].custom_id",
            "missing_required_parameter",
        ),
        (b'{"requests":[{"custom_id":"a"}]}', "requests[0].body", "missing_required_parameter"),
        (b'{"requests":[{"custom_id":"a","body":[]}]}', "requests[0].body", "invalid_type"),
        (b'{"requests":[{"custom_id":7,"body":{}}]}', "requests[0].custom_id", "invalid_type"),
        (b'{"requests":[{"custom_id":"a","method":null,"body":{}}]}', "requests[0].method", "invalid_type"),
        (b'{"requests":[{"custom_id":"a","url":1,"body":{}}]}', "requests[0].url", "invalid_type"),
        (b'{"metadata":"%b","requests":[{"custom_id":"a","body":{}}]}' % (b"x" * 200), None, "invalid_value"),
    ],
)
def test_a_wrong_shape_is_named_by_its_place(body: bytes, param: str | None, code: str) -> None:
    """What would be no line is a 400 at once, and says where it is."""
    with pytest.raises(ApiError) as caught:
        READER.read(body)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'\xef\xbb\xbf{"requests":[]}',
        b'{"requests":[{"custom_id":"\xff","body":{}}]}',
        b'{"requests":[{"custom_id":"a","body":{"a":"%b\xe9"}}]}' % (b"\xe9\x9b\xa8" * 400_000),
        b'{"requests":[{"custom_id":"a\nb","body":{}}]}',
        b'{"requests":[{"custom_id":"a","body":{\0}}]}',
        b'{"requests":[{"custom_id":"a","body":{"a":%b}}]}' % (b"[" * 100_000),
        b'{"requests":[{"custom_id":"a","body":{}}',
        b'{"requests":[{"custom_id":"a","body":{"a":NaN}}]}',
        b'{"requests":[{"custom_id":"a","body":{"a":01}}]}',
        b'{"requests":[{"custom_id":"a","body":{"a":"\\ud800"}}]}',
    ],
)
def test_what_is_no_json_is_not_read(body: bytes) -> None:
    """No line is made of bytes that are no JSON in UTF-8, however they are broken."""
    with pytest.raises(UNREADABLE):
        READER.read(body)


def test_utf_8_may_be_cut_anywhere() -> None:
    """A character that lies across two of the pieces that are looked at is whole."""
    for shift in range(3):
        text = b"x" * shift + b"\xe9\x9b\xa8" * 400_000
        (line,) = lines(b'{"custom_id":"a","body":{"a":"%b"}}' % text)
        assert line.endswith(b'"body":{"a":"%b"}}\n' % text)


members = st.dictionaries(
    st.text(max_size=5), st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


@given(st.lists(st.tuples(st.text(min_size=1), members), min_size=1, max_size=5), st.sampled_from([None, 1]))
def test_every_request_is_a_line_that_says_the_same(
    requests: list[tuple[str, dict[str, object]]], indent: int | None
) -> None:
    """However it is laid out, a line decodes to its request with method and url beside it."""
    brought = [{"custom_id": name, "body": body} for name, body in requests]
    found = READER.read(json.dumps({"requests": brought}, indent=indent, ensure_ascii=indent is None).encode())
    made = list(found.lines(CHAT))
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in made)
    assert [msgspec.json.decode(line) for line in made] == [
        {"method": "POST", "url": CHAT, **msgspec.json.decode(json.dumps(one))} for one in brought
    ]


@given(st.binary(max_size=60))
def test_nothing_but_a_refusal_comes_of_anything_else(data: bytes) -> None:
    """Whatever bytes come, there are lines, or an error that is the client's."""
    for body in (data, b'{"requests":[%b]}' % data, b'{"requests":[{"custom_id":"a","body":{%b}}]}' % data):
        try:
            made = list(READER.read(body).lines(CHAT))
        except (ApiError, *UNREADABLE):
            continue
        assert all(b"\n" not in line[:-1] for line in made)


def test_the_same_order_has_the_same_fingerprint() -> None:
    """The order of its members does not matter, the bytes of its requests do."""
    one = inline_fingerprint({"completion_window": "24h", "endpoint": CHAT}, sha256="a")
    assert one == inline_fingerprint({"endpoint": CHAT, "completion_window": "24h"}, sha256="a")
    assert one != inline_fingerprint({"completion_window": "24h", "endpoint": CHAT}, sha256="b")
    assert one != inline_fingerprint({"completion_window": "48h", "endpoint": CHAT}, sha256="a")
