"""Hostile lines, group B of the reliability page as one table; and what holds for any bytes at all."""

import io
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.limits import KIMI
from batchmill.spec.lines import Checker, ErrorReport, Line, RawLine, read_lines, whole_file_errors
from batchmill.spec.objects import LineError

CHAT = "/v1/chat/completions"
_LIMITS = replace(KIMI, max_line_bytes=16 << 20, models_per_file=None)
Verdict = tuple[str, int | None, str | None]  # code, line, param


def text(custom_id: str = '"a"', more: str = "", model: str = '"m"', head: str = "") -> bytes:
    """Return a line: the raw JSON of its custom_id and model, further members of its body and of its envelope."""
    body = f'{{"model":{model},"messages":[{{"role":"user","content":"hi"}}]{more}}}'
    return f'{{{head}"custom_id":{custom_id},"method":"POST","url":"{CHAT}","body":{body}}}'.encode()


def with_url(url: str) -> bytes:
    """Return a line for this URL."""
    return text().replace(CHAT.encode(), json.dumps(url, ensure_ascii=False).encode()[1:-1])


def with_body(body: bytes) -> bytes:
    """Return a line with this as its body."""
    return b'{"custom_id":"a","method":"POST","url":"%b","body":%b}' % (CHAT.encode(), body)


def verdicts(data: bytes) -> list[Verdict]:
    """Check a file; return everything that is wrong with it."""
    checker = Checker(endpoint=CHAT, limits=_LIMITS, known_models=["m", "n"])
    lines = list(read_lines(io.BytesIO(data).readline, _LIMITS.max_line_bytes))
    found: list[LineError] = list(whole_file_errors(len(lines), _LIMITS))
    for raw in lines:
        checked = checker.check(raw)
        found += [] if isinstance(checked, Line) else checked
    return [(error.code, error.line, error.param) for error in found]


GOOD = text()
_JSON: Verdict = ("invalid_json_line", 1, None)
_OBJECT: Verdict = ("invalid_request", 1, None)


def _envelope(param: str, code: str = "invalid_request", line: int = 1) -> Verdict:
    return (code, line, param)


_TABLE: list[tuple[str, bytes, list[Verdict]]] = [
    ("B1 mark at the start", b"\xef\xbb\xbf" + GOOD, []),
    ("B1 mark twice", b"\xef\xbb\xbf\xef\xbb\xbf" + GOOD, [_JSON]),
    ("B1 mark later", GOOD + b"\n\xef\xbb\xbf" + text('"b"'), [("invalid_json_line", 2, None)]),
    *((f"B2 {name}", GOOD.decode().encode(name), [_JSON]) for name in ("utf-16", "utf-16-le", "utf-16-be")),
    *((f"B2 {name}", GOOD.decode().encode(name), [_JSON]) for name in ("utf-32", "utf-32-le", "utf-32-be")),
    *(
        (f"B3 {bad!r}", text('"b"') + b"\n" + GOOD.replace(b"hi", bad), [("invalid_json_line", 2, None)])
        for bad in (b"\xe9", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf0\x9f\x98")
    ),
    ("B3 cut at the end", GOOD + b"\n\xe2\x82", [("invalid_json_line", 2, None)]),
    ("B4 CRLF", GOOD + b"\r\n" + text('"b"') + b"\r\n", []),
    ("B5 CR only", GOOD + b"\r" + text('"b"') + b"\r", [_JSON]),
    *((f"B6 {char!r}", GOOD.replace(b"hi", char.encode()), []) for char in "\u2028\u2029\u0085"),
    *((f"B6 raw {char!r}", GOOD.replace(b"hi", char), [_JSON]) for char in (b"\x0b", b"\x0c", b"\t", b"\x1f")),
    ("B7 no newline at the end", GOOD, []),
    ("B7 blank at the end", GOOD + b"\n" * 11, []),
    ("B7 blank within", b"\n \n" + GOOD + b"\n\r\n{", [("invalid_json_line", 5, None)]),
    ("B7 only spaces", b"  \n\t\n\r\n", [("empty_file", None, None)]),
    ("B7 nothing", b"", [("empty_file", None, None)]),
    ("B8 raw NUL", GOOD.replace(b"hi", b"\0"), [_JSON]),
    ("B8 escaped NUL", GOOD.replace(b"hi", b"\\u0000"), []),
    *((f"B9 {word}", text(more=f',"x":{word}'), [_JSON]) for word in ("NaN", "Infinity", "-Infinity")),
    ("B10 twice in the body", text(more=',"a":1,"a":2'), []),
    ("B10 custom_id twice", text(head='"custom_id":"z",'), [_envelope("custom_id")]),
    ("B10 body twice, escaped", text(head='"bod\\u0079":{},'), [_envelope("body")]),
    ("B11 lone surrogate", GOOD.replace(b"hi", b"\\ud800"), [_JSON]),
    ("B11 as a key", text(more=',"\\udc00":1'), [_JSON]),
    ("B11 in the custom_id", text('"\\ud800"'), [_JSON]),
    *(
        (f"B12 {number[:24]}", text(more=f',"x":{number}'), [])
        for number in ("1" * 5000, str(2**70), "0.1000000000000000055511151231257827", "-0", "1E2")
    ),
    ("B13 depth 500", with_body(GOOD.partition(b'"body":')[2][:-2] + b',"x":' + b"[" * 498 + b"]" * 498 + b"}"), []),
    *(
        (f"B13 depth {depth}", text(more=f',"x":{"[" * depth}{"]" * depth}'), [_JSON])
        for depth in (499, 1_000, 1_024, 2_000, 100_000)
    ),
    ("B13 bomb", b"[" * (10 << 20), [_JSON]),
    ("B14 the longest", GOOD.replace(b"hi", b"x" * (_LIMITS.max_line_bytes - len(GOOD) + 2)), []),
    (
        "B14 one byte more",
        GOOD.replace(b"hi", b"x" * (_LIMITS.max_line_bytes - len(GOOD) + 3)) + b"\n" + text('"b"'),
        [("line_too_long", 1, None)],
    ),
    ("B15 many keys", text(more="".join(f',"k{n}":0' for n in range(200_000))), []),
    ("B15 long string", text(more=f',"x":"{"x" * (10 << 20)}"'), []),
    ("B15 long array", text(more=f',"x":[{",".join("0" * 1_000_000)}]'), []),
    *((f"B16 {value!r}", value, [_OBJECT]) for value in (b"[]", b'"x"', b"1", b"null", b"true")),
    *(
        (f"B17 {bad[-24:]!r}", bad, [_JSON])
        for bad in (
            GOOD + GOOD,
            GOOD + b" x",
            GOOD[:-1] + b",}",
            GOOD + b" // no",
            b"/* no */" + GOOD,
            GOOD.replace(b'"', b"'"),
            b"{custom_id:1}",
            GOOD[:-1],
        )
    ),
    ("B18 none", GOOD.replace(b'"custom_id":"a",', b""), [_envelope("custom_id", "missing_required_parameter")]),
    *((f"B18 {bad}", text(bad), [_envelope("custom_id")]) for bad in ("null", "123", '""', f'"{"x" * 513}"', "[]")),
    *(
        (f"B18 {odd}", text(odd), [])
        for odd in ('"\\u0000"', '"\\n"', '"😀"', '"\u202eabc"', '"__proto__"', f'"{"😀" * 512}"')
    ),
    ("B19 again", GOOD + b"\n" + text('"\\u0061"'), [_envelope("custom_id", "duplicate_custom_id", 2)]),
    ("B20 distinct", b"\n".join(text(one) for one in ('"é"', '"e\u0301"', '"A"', '"a"', '"a "')), []),
    ("B21 GET", GOOD.replace(b"POST", b"GET"), [_envelope("method", "invalid_method")]),
    ("B21 lower case", GOOD.replace(b"POST", b"post"), [_envelope("method", "invalid_method")]),
    ("B21 null", GOOD.replace(b'"POST"', b"null"), [_envelope("method")]),
    ("B21 none", GOOD.replace(b'"method":"POST",', b""), [_envelope("method", "missing_required_parameter")]),
    *(
        (f"B22 {url!r}", with_url(url), [_envelope("url", "invalid_url")])
        for url in (
            "http://169.254.169.254/",
            "//evil/v1",
            "/v1/../admin",
            f"{CHAT}?x=1",
            f"{CHAT}#",
            f"{CHAT}/",
            "/v1/embeddings",
            "\\v1",
            "/v1/chat%2Fcompletions",
            f"{CHAT}\r\nX: y",
            f" {CHAT}",
            "",
        )
    ),
    ("B23 none", GOOD.partition(b',"body"')[0] + b"}", [_envelope("body", "missing_required_parameter")]),
    *((f"B23 {bad!r}", with_body(bad), [_envelope("body")]) for bad in (b'"x"', b"[]", b"null", b"1")),
    ("B23 {}", with_body(b"{}"), [_envelope("body.model"), _envelope("body.messages")]),
    *(
        (f"B24 stream {value}", text(more=f',"stream":{value}'), [_envelope("body.stream", "streaming_unsupported")])
        for value in ("true", "1", '"true"', "[]")
    ),
    ("B24 others", text(more=',"stream":false,"n":1000000,"max_tokens":1e9,"logprobs":true'), []),
    ("B25 none", with_body(b'{"messages":[1]}'), [_envelope("body.model")]),
    ("B25 empty", text(model='""'), [_envelope("body.model")]),
    ("B25 number", text(model="1"), [_envelope("body.model")]),
    *(
        (f"B25 {model[:9]}", text(model=model), [_envelope("body.model", "model_not_found")])
        for model in ('"x"', '"../m"', f'"{"x" * (1 << 20)}"', '"m\\u0000"', '"M"')
    ),
    ("B26 extra members", text(head='"headers":{"Authorization":"x"},"api_key":"k","base_url":"http://evil",'), []),
    *(
        (f"B30 {naughty!r}", text(json.dumps(naughty)).replace(b"hi", json.dumps(naughty).encode()[1:-1]), [])
        for naughty in ("\x1b[31m", "\u202e", "<script>alert(1)</script>", "%s%n{0.__class__}", "👨‍👩‍👧", "x" * 512)
    ),
    ("B32 forged log line", text('"\\n2026-01-01 INFO admin ${jndi:ldap://x}"'), []),
    ("B33 formula", text("\"=cmd|' /C calc'!A0\""), []),
]


@pytest.mark.parametrize(("data", "expected"), [row[1:] for row in _TABLE], ids=[row[0] for row in _TABLE])
def test_a_hostile_line_is_accepted_or_named(data: bytes, expected: list[Verdict]) -> None:
    """Each line is good, or every fault of it has its code, its physical line and its member."""
    assert verdicts(data) == expected


_RIGHT = [
    "0",
    "-0",
    "1.5e-3",
    "1E+2",
    '""',
    '"\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9"',
    '"\\ud83d\\ude00"',
    "[]",
    "{ }",
    "null",
]
_WRONG = [
    *(
        "01",
        "+1",
        "1.",
        ".5",
        "1e",
        "-",
        "0x1",
        "1_0",
        "--1",
        "True",
        "nul",
        "'a'",
        '"',
        '"\\x"',
        '"\\u12"',
        '"\\ud800"',
    ),
    *(
        "[1,]",
        "[,1]",
        "[1 2]",
        "[",
        "]",
        "{1:2}",
        '{"a"}',
        '{"a":}',
        '{"a":1,}',
        '{"a" 1}',
        "undefined",
        "//",
        "",
        "\x01",
    ),
]


@pytest.mark.parametrize("value", _RIGHT)
def test_right_json_passes_in_a_body_and_is_no_line_by_itself(value: str) -> None:
    """B31: every form that the grammar has is the backend's business; a line must be an object with its members."""
    assert verdicts(text(more=f',"x":{value}')) == []
    assert {code for code, _, _ in verdicts(value.encode())} <= {"invalid_request", "missing_required_parameter"}


@pytest.mark.parametrize("value", _WRONG)
def test_wrong_json_is_refused_in_a_body_and_as_a_line(value: str) -> None:
    """B31: what the grammar does not have is refused wherever it stands."""
    assert verdicts(text(more=f',"x":{value}')) == [_JSON]
    assert verdicts(value.encode()) == ([_JSON] if value else [("empty_file", None, None)])


_HOSTILE = st.one_of(
    st.binary(max_size=80),
    st.sampled_from([GOOD, b"", b" ", b"\r", b"[" * 2000, GOOD[:-1], b"\xef\xbb\xbf", b"\xff\xfe", b"x" * 400]),
    st.builds(lambda at, new: GOOD[:at] + new + GOOD[at + 1 :], st.integers(0, len(GOOD)), st.binary(max_size=3)),
)


@given(st.lists(_HOSTILE, max_size=6))
def test_any_bytes_are_read_to_their_end(pieces: list[bytes]) -> None:
    """Nothing raises; each line that is not blank is judged once, under its physical number."""
    data = b"\n".join(pieces)
    checker = Checker(endpoint=CHAT, limits=replace(_LIMITS, max_line_bytes=300), known_models=["m"])
    physical = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected = [number for number, line in enumerate(physical, 1) if line.strip(b" \t\r\n\x0b\x0c")]
    seen = []
    for raw in read_lines(io.BytesIO(data).readline, 300):
        seen.append(raw.number)
        checked = checker.check(raw)
        if isinstance(checked, Line):
            assert data[checked.offset : checked.offset + checked.length] == raw.text
        else:
            assert checked
            assert all(error.line == raw.number for error in checked)
    assert seen == expected


def _endless(piece: bytes, total: int, *, lines: bool) -> Callable[[int], bytes]:
    """Return the readline of a file of `total` bytes that nobody holds: one line, or `piece` again and again."""
    left = total

    def readline(most: int) -> bytes:
        nonlocal left
        size = min(left, len(piece) if lines else most)
        left -= size
        return piece[:size] if lines else piece * (size // len(piece))

    return readline


_MIB = 1 << 20


@pytest.mark.parametrize(
    ("readline", "count"),
    [
        (lambda: _endless(b"x", 256 * _MIB, lines=False), 1),
        (lambda: _endless(b"[", 10 * _MIB, lines=False), 1),
        (lambda: _endless(b"{\n", 200_000, lines=True), 100_000),
    ],
    ids=["a line without an end", "a bomb", "bad lines only"],
)
def test_memory_is_bounded_whatever_comes(readline: Callable[[], Callable[[int], bytes]], count: int) -> None:
    """B13, B14, B28: 256 MB without a line end, 10 MB of depth, and bad lines only stay within 64 MiB."""
    limits = replace(KIMI, max_line_bytes=8 * _MIB)
    checker, report = Checker(endpoint=CHAT, limits=limits, known_models=["m"]), ErrorReport(max_errors=1000)
    tracemalloc.start()
    try:
        for raw in read_lines(readline(), limits.max_line_bytes):
            checked = checker.check(raw)
            assert not isinstance(checked, Line)
            report.add(checked)
        assert tracemalloc.get_traced_memory()[1] < 64 * _MIB
    finally:
        tracemalloc.stop()
    assert report.count == count
    assert len(report.data()) <= 1001
    assert sum(len(error.message) for error in report.data()) < _MIB


def test_an_id_is_remembered_however_far() -> None:
    """B19: the second use of an id is found however far it is from the first, and both lines are named."""
    checker = Checker(endpoint=CHAT, limits=_LIMITS, known_models=["m"])
    first = checker.check(RawLine(1, 0, GOOD, over=False))
    assert isinstance(first, Line)
    last = checker.check(RawLine(1_000_000, 0, GOOD, over=False))
    assert [(error.code, error.line) for error in last if isinstance(error, LineError)] == [
        ("duplicate_custom_id", 1_000_000)
    ]
    assert "line 1." in str(last)
