"""What one line of input must be."""

import json
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchmill.spec.limits import KIMI, OPEN
from batchmill.spec.rules import Facts, Rules

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
GOOD = {"custom_id": "row-1", "method": "POST", "url": CHAT, "body": BODY}
RULES = Rules(endpoint=CHAT, limits=KIMI)


def line(**members: object) -> bytes:
    """Return a good line with some members changed; `...` leaves one out."""
    merged = {name: value for name, value in {**GOOD, **members}.items() if value is not ...}
    return json.dumps(merged, ensure_ascii=False).encode()


def body(**members: object) -> bytes:
    """Return a good line with some members of its body changed; `...` leaves one out."""
    return line(body={name: value for name, value in {**BODY, **members}.items() if value is not ...})


def faults(text: bytes, rules: Rules = RULES) -> list[tuple[str, str | None]]:
    """Return code and param of everything wrong with line 7; the quick look must not have accepted it."""
    facts = rules.careful(text, 7)
    assert rules.quick(text) is None
    assert {error.line for error in facts.errors} <= {7}
    return [(error.code, error.param) for error in facts.errors]


def accepted(text: bytes, rules: Rules = RULES) -> Facts:
    """Return the facts of a line that must be good; both looks must agree where the quick one is sure."""
    facts = rules.careful(text, 7)
    assert facts.errors == ()
    assert rules.quick(text) in (facts, None)
    return facts


def deep(levels: int) -> bytes:
    """Return a good line, nested so deep."""
    return line(body={**BODY, "x": "?"}).replace(b'"?"', b"[" * (levels - 2) + b"]" * (levels - 2))


def test_a_good_line_is_accepted_at_a_glance() -> None:
    """The quick look knows the forms that everybody writes, spaced and compact."""
    spaced = line()
    compact = json.dumps(GOOD, separators=(",", ":")).encode()
    for text in (spaced, compact):
        facts = RULES.quick(text)
        assert facts == RULES.careful(text, 1)
        assert facts is not None
        assert (facts.custom_id, facts.token, facts.model) == ("row-1", b'"row-1"', "m")


@pytest.mark.parametrize(
    "text",
    [
        line(headers={"x": ["y"]}, api_key="k"),  # ignored, never used
        line().replace(b", ", b" ,\t").replace(b": ", b" :\r "),
        line(x=1).replace(b'"x": 1', b'"x": 1, "x": 2'),
        line().replace(b"custom_id", b"custom\\u005fid"),
        line().replace(b"POST", b"\\u0050OST"),
    ],
)
def test_an_unusual_line_is_accepted_after_a_careful_look(text: bytes) -> None:
    """Extra members, blanks and escapes are no fault."""
    assert RULES.quick(text) is None
    assert accepted(text).custom_id == "row-1"


@pytest.mark.parametrize(
    "value",
    [
        "1" * 5000,
        str(2**70),
        "1e400",
        "-0",
        "1E2",
        '"\\u0000"',
        '"\u2028\u2029\x85"',
        '{"a":1,"a":2}',
        '"\\ud83d\\ude00"',
    ],
)
def test_values_in_the_body_are_the_backends_business(value: str) -> None:
    """Any valid JSON in the body is passed on, whatever a parser of ours would make of it."""
    accepted(body(x="?").replace(b'"?"', value.encode()))


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b'{"a":1}{"a":1}',
        line() + b" x",
        line()[:-1] + b",}",
        line().replace(b'"', b"'"),
        line() + b" // why",
        b"\xef\xbb\xbf" + line(),
        body(x="?").replace(b'"?"', b"NaN"),
        body(x="?").replace(b'"?"', b"-Infinity"),
        body(x="?").replace(b'"?"', b"01"),
        body(x="?").replace(b"?", b"\\ud800"),
        body(x="?").replace(b"?", b"\\x"),
        body(x="?").replace(b"?", b"\0"),
        body(x="?").replace(b"?", b"\x0b"),
        line(custom_id="?").replace(b"?", b"\\udc00\\ud800"),
    ],
)
def test_what_is_not_json_is_refused(text: bytes) -> None:
    """Strictly so: no NaN, no lone surrogate, no control character in a string."""
    assert faults(text) == [("invalid_json_line", None)]


@pytest.mark.parametrize("bad", [b"\xe9", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe4\xbd"])
@pytest.mark.parametrize("member", ["custom_id", "x"])
def test_what_is_not_utf8_is_refused_wherever_it_stands(bad: bytes, member: str) -> None:
    """Also in a part of the body that no decoder of ours looks at."""
    text = line(custom_id="?") if member == "custom_id" else body(x="?")
    text = text.replace(b"?", bad)
    assert faults(text) == [("invalid_json_line", None)]
    assert f"byte {text.index(bad) + 1} " in RULES.careful(text, 7).errors[0].message


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("utf-32-le", "UTF-32"),
        ("utf-32-be", "UTF-32"),
    ],
)
def test_another_encoding_is_named(encoding: str, name: str) -> None:
    """A file of the wrong encoding says which, with and without a byte order mark."""
    text = line().decode().encode(encoding)
    assert faults(text) == [("invalid_json_line", None)]
    assert name in RULES.careful(text, 1).errors[0].message


def test_cr_only_line_ends_are_named() -> None:
    """A file of an old Mac is one line to us; the message says why."""
    text = b"\r".join([line(), line(custom_id="row-2")])
    assert faults(text) == [("invalid_json_line", None)]
    assert "CR-only" in RULES.careful(text, 1).errors[0].message


@pytest.mark.parametrize("text", [b"[]", b'"x"', b"5", b"null", b"true", b'[{"custom_id":"a"}]'])
def test_json_that_is_no_object_is_refused(text: bytes) -> None:
    """A line is an object."""
    assert faults(text) == [("invalid_request", None)]


def test_nesting_is_bounded_before_any_parser_gives_up() -> None:
    """The limit is exact, brackets in strings do not count, and no depth is a fault of ours."""
    accepted(deep(KIMI.max_depth))
    accepted(deep(KIMI.max_depth).replace(b"row-1", b'\\"{[' * 100))
    accepted(body(x="[{" * 5000))
    accepted(body(x=[{}] * 5000))
    assert faults(deep(KIMI.max_depth + 1)) == [("invalid_json_line", None)]
    assert faults(b"[" * 1_000_000) == [("invalid_json_line", None)]
    assert faults(deep(100_000)) == [("invalid_json_line", None)]
    assert (
        "deeper than 5 "
        in Rules(endpoint=CHAT, limits=replace(KIMI, max_depth=5)).careful(deep(6), 1).errors[0].message
    )


@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
def test_a_member_stands_exactly_once(name: str) -> None:
    """A missing member is named, and so is one that stands twice, whichever a parser would take."""
    assert faults(line(**{name: ...})) == [("missing_required_parameter", name)]
    twice = line()[:-1] + b', "\\u00%02x%b": %b}' % (ord(name[0]), name[1:].encode(), json.dumps(GOOD[name]).encode())
    assert faults(twice) == [("invalid_request", name)]


@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
@pytest.mark.parametrize("value", [None, 5, True, ["x"]])
def test_a_member_of_the_wrong_type_is_named(name: str, value: object) -> None:
    """Null is no string, and a list no object."""
    assert faults(line(**{name: value})) == [("invalid_request", name)]


@pytest.mark.parametrize("custom_id", ["", "x" * 513, "值" * 513])
def test_a_custom_id_has_1_to_512_characters(custom_id: str) -> None:
    """Characters, not bytes."""
    assert faults(line(custom_id=custom_id)) == [("invalid_request", "custom_id")]


@pytest.mark.parametrize("custom_id", ["x", "值" * 512, "\0", "a\nb", "__proto__", "=cmd|x", "\U0001f600", " "])
def test_any_other_custom_id_is_good(custom_id: str) -> None:
    """Its raw token is kept as written."""
    facts = accepted(line(custom_id=custom_id))
    assert facts.custom_id == custom_id
    assert facts.token == json.dumps(custom_id, ensure_ascii=False).encode()


@pytest.mark.parametrize("method", ["GET", "post", "", "POST "])
def test_the_method_is_post(method: str) -> None:
    """To the letter."""
    assert faults(line(method=method)) == [("invalid_method", "method")]


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/",
        "//evil/v1",
        "/v1/../admin",
        CHAT + "?x=1",
        CHAT + "#",
        CHAT + "/",
        "/v1/embeddings",
        "\\v1",
        "/v1/chat%2fcompletions",
        CHAT + "\r\nX: y",
        "x" * 100_000,
    ],
)
def test_the_url_is_the_batchs_endpoint(url: str) -> None:
    """To the letter; and a message never echoes more than a little of it."""
    assert faults(line(url=url)) == [("invalid_url", "url")]
    assert len(RULES.careful(line(url=url), 1).errors[0].message) < 200


@pytest.mark.parametrize("model", [..., None, 5, "", ["m"]])
def test_a_body_names_its_model(model: object) -> None:
    """A model is a string that is not empty."""
    assert faults(body(model=model)) == [("invalid_request", "body.model")]


@pytest.mark.parametrize("messages", [..., None, 5, "hi", {}, [], {"a": 1}])
def test_chat_needs_messages(messages: object) -> None:
    """A non-empty array."""
    assert faults(body(messages=messages)) == [("invalid_request", "body.messages")]


def test_blanks_do_not_fill_an_array() -> None:
    """An array of nothing but blanks is empty; one that begins with a blank may not be."""
    assert faults(body(messages=[]).replace(b"[]", b"[ \r\t ]")) == [("invalid_request", "body.messages")]
    accepted(body(messages=[1]).replace(b"[1]", b"[ 1]"))


@pytest.mark.parametrize("stream", [True, 1, "true", [], 0])
def test_streaming_is_refused(stream: object) -> None:
    """Whatever some backend might take for true."""
    assert faults(body(stream=stream)) == [("streaming_unsupported", "body.stream")]


@pytest.mark.parametrize("stream", [False, None])
def test_saying_no_to_streaming_is_fine(stream: object) -> None:
    """False and null are what leaving it out means."""
    assert RULES.quick(body(stream=stream)) is not None
    accepted(body(stream=stream))


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        ("/v1/completions", "prompt"),
        ("/v1/embeddings", "input"),
        ("/v1/responses", "input"),
        ("/v1/moderations", "input"),
    ],
)
def test_other_endpoints_need_their_own_input(endpoint: str, name: str) -> None:
    """A string or a non-empty array, and no messages."""
    rules = Rules(endpoint=endpoint, limits=OPEN)
    for good in ("", "hi", ["hi"], [1, 2]):
        text = line(url=endpoint, body={"model": "m", name: good})
        assert rules.quick(text) == accepted(text, rules)
    unusable: tuple[dict[str, object], ...] = ({}, {name: None}, {name: 5}, {name: []}, {name: {}})
    for bad in unusable:
        text = line(url=endpoint, body={"model": "m", **bad})
        assert faults(text, rules) == [("invalid_request", f"body.{name}")]


def test_an_endpoint_that_we_do_not_know_needs_a_model_only() -> None:
    """An operator may allow more endpoints than we have rules for."""
    rules = Rules(endpoint="/v1/rerank", limits=OPEN)
    text = line(url="/v1/rerank", body={"model": "m"})
    assert rules.quick(text) == accepted(text, rules)


def test_every_fault_of_a_line_is_reported_at_once() -> None:
    """Nobody has to upload a file five times to learn five things."""
    text = json.dumps({"custom_id": "", "method": "GET", "body": {"messages": [], "stream": True}}).encode()
    assert faults(text) == [
        ("missing_required_parameter", "url"),
        ("invalid_request", "custom_id"),
        ("invalid_method", "method"),
        ("invalid_request", "body.model"),
        ("invalid_request", "body.messages"),
        ("streaming_unsupported", "body.stream"),
    ]


@pytest.mark.parametrize(
    ("members", "more"),
    [
        ({}, 0),
        ({"max_tokens": 64}, 64),
        ({"max_completion_tokens": 32, "max_tokens": 64}, 32),
        ({"max_tokens": -5}, 0),
        ({"max_tokens": 10**9}, 0),
        ({"max_tokens": 1.5}, 0),
        ({"max_tokens": "64"}, 0),
        ({"max_tokens": 10**400}, 0),
        ({"max_completion_tokens": None, "max_tokens": 64}, 64),
        ({"max_output_tokens": 64}, 64),
        ({"max_tokens": 64, "n": 3}, 192),
        ({"max_tokens": 64, "n": None}, 64),
        ({"n": 3}, 0),
        ({"max_tokens": 9_999_999, "n": 9_999_999}, 9_999_999),
    ],
)
def test_a_lines_tokens_are_guessed(members: dict[str, object], more: int) -> None:
    """A quarter of the body's bytes, and the tokens that it allows, for each answer, if that is a sane number."""
    text = body(**members)
    facts = accepted(text)
    assert (facts.tokens, facts.output) == (len(json.dumps({**BODY, **members})) // 4 + more, more)


def test_a_prompt_begins_with_its_tools() -> None:
    """As the usual templates have it, wherever the body has them; all is as the user wrote it, nothing is decoded."""
    tools, messages = [{"type": "function"}], [{"role": "user", "content": "one\ntwo"}]
    body = {"messages": messages, "model": "m", "tools": tools}
    assert bytes(accepted(line(body=body)).prompt) == json.dumps(tools).encode() + json.dumps(messages).encode()
    del body["tools"]
    assert bytes(accepted(line(body=body)).prompt) == json.dumps(messages).encode()


@pytest.mark.parametrize(("endpoint", "name"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input")])
def test_other_endpoints_have_prompts_of_their_own(endpoint: str, name: str) -> None:
    """The member that the endpoint cannot do without is what its prompt begins with."""
    text = line(url=endpoint, body={"model": "m", name: "once upon a time"})
    facts = Rules(endpoint=endpoint, limits=OPEN).quick(text)
    assert facts is not None
    assert bytes(facts.prompt) == b'"once upon a time"'


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "model": st.just("m") | JSON,
        "messages": st.just([1]) | JSON,
        "stream": st.booleans() | JSON,
        "max_tokens": st.integers(-1, 10**8) | JSON,
        "max_completion_tokens": st.integers(-1, 10**8) | JSON,
        "max_output_tokens": st.integers(-1, 10**8) | JSON,
        "n": st.integers(-1, 10**8) | JSON,
        "x": JSON,
    },
)
LINES = st.fixed_dictionaries(
    {"body": BODIES | JSON},
    optional={
        "custom_id": st.text() | JSON,
        "method": st.just("POST") | JSON,
        "url": st.just(CHAT) | JSON,
        "x": JSON,
    },
)


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """Write something like a line: any order, any blanks, escapes or not, a member twice, a byte wrong."""
    value = draw(LINES | st.builds(lambda one: {**GOOD, "body": one}, BODIES))
    members = [(name, value[name]) for name in draw(st.permutations(list(value)))]
    if draw(st.integers(0, 9)) == 0:
        members.append(draw(st.sampled_from([*GOOD.items(), ("url", "")])))
    escaped, gap = draw(st.booleans()), draw(st.sampled_from(["", " ", "\r", "  "]))
    parts = [f"{json.dumps(name)}{gap}:{gap}{json.dumps(one, ensure_ascii=escaped)}" for name, one in members]
    text = ("{" + f"{gap},{gap}".join(parts) + "}").encode(errors="surrogatepass")
    if draw(st.integers(0, 9)) == 0 and text:
        at = draw(st.integers(0, len(text) - 1))
        text = text[:at] + draw(st.binary(max_size=2)) + text[at + 1 :]
    return text


@given(written())
@example(line())
@example(line() + b" ")
def test_the_quick_look_accepts_only_what_the_careful_one_does(text: bytes) -> None:
    """Whatever is accepted at a glance has the same facts after a careful look, and no fault."""
    quick = RULES.quick(text)
    careful = RULES.careful(text, 1)
    assert quick in (None, careful)
    assert (careful.model is not None and careful.custom_id is not None) or careful.errors


@given(st.binary(max_size=60) | st.binary(max_size=20).map(lambda junk: line().replace(b"hi", junk)))
def test_no_bytes_are_a_fault_of_ours(text: bytes) -> None:
    """Any bytes at all are a good line or have errors, and only valid JSON is good."""
    careful = RULES.careful(text, 1)
    assert RULES.quick(text) in (None, careful)
    if not careful.errors:
        json.loads(text.decode())
