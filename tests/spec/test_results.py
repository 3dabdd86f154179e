"""The lines of the result files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.objects import Usage
from batchmill.spec.results import (
    answered,
    body_of_reply,
    readdressed,
    result_id,
    status_of,
    unanswered,
    usage_of,
)

OK = b'{"id":"chatcmpl-1","choices":[],"usage":null}'


def read_back(text: bytes) -> dict[str, object]:
    """Return the one JSON object that a result line must be."""
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    value = json.loads(text.decode())
    assert list(value) == ["id", "custom_id", "response", "error"]
    return dict(value)


def test_an_id_is_unique_and_the_same_each_time() -> None:
    """A line that is written again, by another worker, has the same id."""
    assert result_id("batch_1", 7) == result_id("batch_1", 7)
    assert result_id("batch_1", 7).startswith("batch_req_")
    assert len({result_id(f"batch_{b}", n) for b in (1, 11) for n in (1, 2, 11, 12)}) == 8


def test_an_answered_request_has_a_response_and_no_error() -> None:
    """The members of the contract, the body as it came."""
    text = answered("batch_req_1", b'"\\u0041"', 200, "req_1", OK)
    assert OK in text
    assert b'"custom_id":"\\u0041"' in text
    assert read_back(text) == {
        "id": "batch_req_1",
        "custom_id": "A",
        "response": {"status_code": 200, "request_id": "req_1", "body": json.loads(OK)},
        "error": None,
    }


def test_an_unanswered_request_has_an_error_and_no_response() -> None:
    """Whatever the message holds, the line is one line."""
    assert read_back(unanswered("batch_req_1", b'"A"', "batch_expired", 'Not "run"\nin time.')) == {
        "id": "batch_req_1",
        "custom_id": "A",
        "response": None,
        "error": {"code": "batch_expired", "message": 'Not "run"\nin time.'},
    }


@pytest.mark.parametrize(
    "raw",
    [
        OK,
        b'{"choices":[{"text":"\xe2\x80\xa8 \\n \\u0000 \xc2\x85"}], "n": 1e400, "m": ' + b"7" * 5000 + b"}",
        b'{"error":null,"output":[]}',
        b'{"choices":[],"error":{"code":1}}',
        b'{"data":[{"error":"x"}]}',
        b'{"results":[],"error":"x"}',
        b'{"text":"\\"error\\""}',
        b"{}",
    ],
)
def test_a_good_reply_is_kept_byte_for_byte(raw: bytes) -> None:
    """No number, escape or blank changes."""
    assert body_of_reply(raw, 200) == raw


def test_raw_line_breaks_between_tokens_become_spaces() -> None:
    """A pretty-printed reply fits on one line; escapes in its strings stay; blanks and a mark around it go."""
    raw = b'\xef\xbb\xbf\r\n{\r\n  "choices":\n[ "a\\nb" ]\r}\n\n'
    assert body_of_reply(raw, 200) == b'{    "choices": [ "a\\nb" ] }'


GARBLED = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"5",
    b"<html>busy</html>",
    OK[:-1],
    OK + OK,
    b'{"a":NaN}',
    b'{"a":"\xff"}',
    b'{"a":"\\ud800"}',
    b'{"a":"\n"}',
    b'data: {"choices":[]}\n\n',
    b"[" * 100_000,
]


@pytest.mark.parametrize("raw", [*GARBLED, b'{"error":{"message":"no"}}', b'{"id":"x","error":"overloaded"}'])
def test_a_success_without_an_answer_is_garbled(raw: bytes) -> None:
    """HTML, half of a reply, a stream, bad UTF-8, or nothing but an error is no result."""
    assert body_of_reply(raw, 200) is None


def test_a_refusal_is_kept_byte_for_byte() -> None:
    """A backend's own error body is what the user sees."""
    raw = b'{"error":{"message":"too long","type":"x"}}'
    assert body_of_reply(raw, 400) == raw


@pytest.mark.parametrize("raw", GARBLED)
def test_a_refusal_that_is_no_object_is_quoted(raw: bytes) -> None:
    """An error envelope holds what there was, shortened, so that nothing is lost and every line is JSON."""
    body = body_of_reply(raw, 502)
    assert body is not None
    error = json.loads(body)["error"]
    assert error == {"message": error["message"], "type": "upstream_error", "param": None, "code": None}
    assert error["message"] == raw.decode(errors="replace")[:2000]


def test_a_quote_is_counted_in_characters() -> None:
    """Two thousand of them, whatever their width."""
    body = body_of_reply(("\U0001f600" * 3000).encode(), 500)
    assert body is not None
    assert json.loads(body)["error"]["message"] == "\U0001f600" * 2000


@given(
    st.binary(max_size=40)
    | st.binary(max_size=8).map(lambda junk: OK.replace(b"[]", junk))
    | st.recursive(st.none() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
        lambda value: json.dumps({"choices": value}, indent=1, ensure_ascii=False).encode()
    ),
    st.sampled_from([200, 400]),
    st.text(),
)
def test_a_result_line_is_always_one_line_of_json(raw: bytes, status: int, custom_id: str) -> None:
    """Whatever a backend sends, the file stays JSONL, and a JSON reply keeps its meaning."""
    token = json.dumps(custom_id).encode()
    body = body_of_reply(raw, status)
    if body is None:
        assert status == 200
        read_back(unanswered("batch_req_1", token, "invalid_backend_response", raw.decode(errors="replace")))
        return
    value = read_back(answered("batch_req_1", token, status, custom_id, body))
    assert value["custom_id"] == custom_id
    if status == 200:
        assert json.loads(body) == json.loads(raw.decode())


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 18, "completion_tokens": 2, "total_tokens": 20}, Usage(input_tokens=18, output_tokens=2)),
        ({"prompt_tokens": 18, "cached_tokens": 7}, Usage(input_tokens=18, cached_tokens=7)),
        (
            {
                "prompt_tokens": 18,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 6, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 3},
                "queue_time": 0.5,
            },
            Usage(input_tokens=18, cached_tokens=6, output_tokens=5, reasoning_tokens=3),
        ),
        (
            {
                "input_tokens": 18,
                "output_tokens": 5,
                "input_tokens_details": {"cached_tokens": 6},
                "output_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(input_tokens=18, cached_tokens=6, output_tokens=5, reasoning_tokens=3),
        ),
        ({"prompt_tokens": 0, "prompt_tokens_details": None, "completion_tokens_details": {}}, Usage()),
        (None, None),
        ({}, None),
        ("many", None),
        ({"completion_tokens": 5}, None),
        ({"prompt_tokens": "18"}, None),
        ({"prompt_tokens": -1}, None),
        ({"prompt_tokens": 10**40}, None),
        ({"prompt_tokens": True}, None),
        ({"prompt_tokens": 18, "prompt_tokens_details": [1]}, None),
    ],
)
def test_usage_is_picked_out_in_the_names_that_we_know(usage: object, expected: Usage | None) -> None:
    """Chat's names, those of responses, and Kimi's cached_tokens at the top; anything odd is no usage."""
    assert usage_of(json.dumps({"choices": [], "usage": usage}).encode()) == expected


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"usage":', b'{"usage":' + b"[" * 100_000, b'{"\xff":1}'])
def test_a_reply_without_usage_has_none(body: bytes) -> None:
    """Nothing in a reply makes the count a fault of ours."""
    assert usage_of(body) is None


def test_an_answer_is_told_from_what_ended_without_one() -> None:
    """By its status: whatever a custom_id or a message says, its quotes have backslashes."""
    odd = json.dumps('"response":{"status_code":200').encode()
    assert status_of(answered("a", odd, 400, "req", b'{"error":null}')) == 400
    assert status_of(unanswered("a", odd, "request_timeout", '"response":{"status_code":200')) is None


def test_an_answer_can_be_anothers() -> None:
    """All but the id and the custom_id stays, byte for byte."""
    line = answered("a", b'"x"', 200, "req", b'{"id": "a"}')
    other = readdressed(line, line_id="a", custom_id=b'"x"', new_line_id="b", new_custom_id=b'"\\u00e9"')
    assert other == answered("b", b'"\\u00e9"', 200, "req", b'{"id": "a"}')
    with pytest.raises(ValueError, match="not the line"):
        readdressed(line, line_id="b", custom_id=b'"x"', new_line_id="c", new_custom_id=b'"y"')
