"""The lines of an input file."""

import io
import json
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.limits import KIMI, OPEN, Limits
from batchmill.spec.lines import (
    Checker,
    ErrorReport,
    Line,
    RawLine,
    likely_endpoint,
    read_lines,
    split_envelope,
    whole_file_errors,
)
from batchmill.spec.objects import LineError, more_errors

CHAT = "/v1/chat/completions"
BOM = b"\xef\xbb\xbf"


def line(custom_id: str = "row-1", model: str = "m") -> bytes:
    """Return a good line."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}).encode()


def read(data: bytes, max_line_bytes: int = 1000) -> list[RawLine]:
    """Return the lines of a file."""
    return list(read_lines(io.BytesIO(data).readline, max_line_bytes))


def check(texts: Iterable[bytes], limits: Limits = KIMI, known: Iterable[str] = "mno") -> list[list[str]]:
    """Check a file line by line; return the codes of each line's errors."""
    checker = Checker(endpoint=CHAT, limits=limits, known_models=list(known))
    checked = [checker.check(raw) for raw in read(b"\n".join(texts))]
    return [[] if isinstance(one, Line) else [error.code for error in one] for one in checked]


def test_without_known_models_any_model_will_do() -> None:
    """A check without a server at hand asks nothing of a model but that the file keeps to one, where it must."""
    checker = Checker(endpoint=CHAT, limits=KIMI, known_models=None)
    first, second = (checker.check(raw) for raw in read(line("a", "any") + b"\n" + line("b", "other")))
    assert isinstance(first, Line)
    assert [error.code for error in second if isinstance(error, LineError)] == ["mismatched_model"]
    assert checker.models == ["any"]


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        (b'{"url": "/v1/embeddings", "more": [1]}', "/v1/embeddings"),
        (b'{"url": "/v1/nothing"}', CHAT),
        (b'{"url": 1}', CHAT),
        (b"{}", CHAT),
        (b"\xff", CHAT),
        (b"", CHAT),
    ],
)
def test_the_first_line_says_which_endpoint_a_file_is_for(text: bytes, endpoint: str) -> None:
    """Its `url` counts if it is a known endpoint; otherwise, and for what is no line, it is the default."""
    assert likely_endpoint(text, OPEN) == endpoint


def test_lines_are_numbered_and_placed_as_they_stand_in_the_file() -> None:
    """Blank lines count; offsets are bytes of the file."""
    assert read("é\n\n  \nbb\r\n\t\ncc".encode()) == [
        RawLine(1, 0, "é".encode(), over=False),
        RawLine(4, 7, b"bb", over=False),
        RawLine(6, 13, b"cc", over=False),
    ]


def test_only_a_line_feed_ends_a_line() -> None:
    """Neither U+2028, U+2029, U+0085, VT, FF nor a bare CR does; one CR before the feed is dropped."""
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\rg".encode()
    assert [raw.text for raw in read(text + b"\r\n" + text + b"\r\r\n")] == [text, text + b"\r"]


def test_a_byte_order_mark_is_dropped_at_the_very_start_only() -> None:
    """The first line then begins at the third byte; a later mark stays in its line."""
    assert read(BOM + b"a\n" + BOM + b"b\n") == [
        RawLine(1, 3, b"a", over=False),
        RawLine(2, 5, BOM + b"b", over=False),
    ]
    assert read(BOM) == read(BOM + b"\n") == []


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n \n\t\n", b" "])
def test_a_file_of_blanks_has_no_lines(data: bytes) -> None:
    """Whitespace is no request."""
    assert read(data) == []


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("start", [b"", BOM])
def test_the_longest_line_allowed_is_read(start: bytes, end: bytes) -> None:
    """Its mark and its line end do not count; one byte more is over, and its text is not kept."""
    offset = len(start)
    assert read(start + b"x" * 10 + end, 10) == [RawLine(1, offset, b"x" * 10, over=False)]
    assert read(start + b"x" * 11 + end, 10) == [RawLine(1, offset, b"", over=True)]


def test_lines_after_one_too_long_are_in_their_place() -> None:
    """However long it was, the next line has the right number and offset."""
    for size in range(11, 60):
        long, end = b"x" * size, size + 1
        assert read(long + b"\nb\n", 10) == [RawLine(1, 0, b"", over=True), RawLine(2, end, b"b", over=False)]


def test_a_line_too_long_is_never_held() -> None:
    """No read asks for more than a line and its ends."""
    asked: list[int] = []
    data = io.BytesIO(b"x" * 100_000)

    def readline(size: int) -> bytes:
        asked.append(size)
        return data.readline(size)

    assert list(read_lines(readline, 10)) == [RawLine(1, 0, b"", over=True)]
    assert set(asked) == {15}


@given(
    st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b" ", BOM, b"x", b"\x0c", b"\xff", "\u2028".encode()])).map(
        b"".join
    )
)
def test_reading_agrees_with_a_split_at_line_feeds(data: bytes) -> None:
    """The reader is a split, without the file in memory."""
    start = len(BOM) if data.startswith(BOM) else 0
    expected, offset = [], start
    for number, piece in enumerate(data[start:].split(b"\n"), 1):
        text = piece.removesuffix(b"\r")
        if text.strip():
            expected.append(RawLine(number, offset, text if len(text) <= 4 else b"", over=len(text) > 4))
        elif len(text) > 4:  # blanks only, but more than are ever held
            expected.append(RawLine(number, offset, b"", over=True))
        offset += len(piece) + 1
    assert read(data, 4) == expected


def test_a_good_line_becomes_what_the_plan_keeps() -> None:
    """Its place, the span of its raw custom_id, its model and a guess at its tokens."""
    text = line(custom_id='a"é')
    [raw] = read(b"\n" + text)
    checked = Checker(endpoint=CHAT, limits=KIMI, known_models=["m"]).check(raw)
    assert isinstance(checked, Line)
    assert (checked.number, checked.offset, checked.length, checked.model) == (2, 1, len(text), "m")
    token = text[checked.custom_id_offset : checked.custom_id_offset + checked.custom_id_length]
    assert token == b'"a\\"\\u00e9"'
    assert checked.tokens > 0


@pytest.mark.parametrize("custom_id", ["custom_id", "POST", "m", "user", "url", "hi"])
def test_the_span_of_a_custom_id_holds_its_bytes(custom_id: str) -> None:
    """Also where the same bytes stand elsewhere in the line, before it or after."""
    members = list(json.loads(line(custom_id)).items())
    for order in (members, members[::-1]):
        text = json.dumps(dict(order)).encode()
        checked = Checker(endpoint=CHAT, limits=KIMI, known_models=["m"]).check(RawLine(1, 0, text, over=False))
        assert isinstance(checked, Line)
        span = text[checked.custom_id_offset : checked.custom_id_offset + checked.custom_id_length]
        assert span == split_envelope(text).custom_id == json.dumps(custom_id).encode()
        body = text[checked.body_offset : checked.body_offset + checked.body_length]
        assert body == split_envelope(text).body


def test_a_repeated_custom_id_is_reported_with_both_lines() -> None:
    """The second use is the fault; however it is written, it is the same id."""
    checker = Checker(endpoint=CHAT, limits=KIMI, known_models=["m"])
    escaped = line().replace(b"row-1", b"r\\u006fw-1")
    checked = [checker.check(raw) for raw in read(b"\n".join([line(), b"", line("b"), escaped, line()]))]
    assert [isinstance(one, Line) for one in checked] == [True, True, False, False]
    assert checked[2] == (
        LineError(
            code="duplicate_custom_id",
            message="custom_id 'row-1' was already used on line 1.",
            param="custom_id",
            line=4,
        ),
    )


def test_custom_ids_that_only_look_alike_are_distinct() -> None:
    """Case, a trailing space and the Unicode form make a difference."""
    assert check(map(line, ["a", "A", "a ", "\u00e9", "e\u0301"])) == [[], [], [], [], []]


def test_a_bad_line_has_used_its_custom_id() -> None:
    """A second line with the id of a faulty one is a second line with that id."""
    assert check([line().replace(b"POST", b"GET"), line()]) == [["invalid_method"], ["duplicate_custom_id"]]


def test_a_model_that_nobody_serves_is_not_found() -> None:
    """It does not become the file's model."""
    assert check([line("a", "x"), line("b", "n"), line("c", "x" * 500), line("d", "n")]) == [
        ["model_not_found"],
        [],
        ["model_not_found"],
        [],
    ]


def test_a_file_uses_one_model() -> None:
    """The first known one is the file's; the message names both."""
    checker = Checker(endpoint=CHAT, limits=KIMI, known_models={"m", "n"})
    checked = [checker.check(raw) for raw in read(line("a", "m") + b"\n" + line("b", "n"))]
    assert checker.models == ["m"]
    assert not isinstance(checked[1], Line)
    (error,) = checked[1]
    assert (error.code, error.param) == ("mismatched_model", "body.model")
    assert "'n'" in error.message
    assert "'m'" in error.message


def test_a_profile_may_allow_several_models() -> None:
    """They are listed in the order of first use."""
    checker = Checker(endpoint=CHAT, limits=OPEN, known_models={"m", "n"})
    for number, model in enumerate("nmn", 1):
        assert isinstance(checker.check(RawLine(number, 0, line(str(number), model), over=False)), Line)
    assert checker.models == ["n", "m"]
    two = replace(KIMI, models_per_file=2)
    assert check([line("a", "m"), line("b", "n"), line("c", "o"), line("d", "m")], two)[2:] == [
        ["mismatched_model"],
        [],
    ]


def test_all_faults_of_a_line_come_together() -> None:
    """Those that only the rest of the file shows, too."""
    bad = line("row-1", "x").replace(b"POST", b"GET")
    assert check([line(), bad]) == [[], ["invalid_method", "duplicate_custom_id", "model_not_found"]]


def test_lines_that_say_nothing_have_nothing_in_common() -> None:
    """Two lines that cannot be read are no duplicates of each other, and name no model."""
    assert check([b"{", b"{"]) == [["invalid_json_line"], ["invalid_json_line"]]


def test_a_line_too_long_is_reported_as_such() -> None:
    """Nothing else is known of it."""
    checker = Checker(endpoint=CHAT, limits=KIMI, known_models=["m"])
    assert checker.check(RawLine(7, 0, b"", over=True)) == (
        LineError(code="line_too_long", message="Line 7 is longer than 33554432 bytes.", line=7),
    )


def test_an_envelope_is_split_byte_for_byte() -> None:
    """Escapes, blanks, long numbers and repeated members of the body stay as the user wrote them."""
    body = b'{"a":1, "a":2.50,\t"n":' + b"9" * 5000 + b',"s":"\\u00e9\xc3\xa9"}'
    envelope = split_envelope(b'{"url":"x", "custom_id" : "\\u0041" ,"body" : ' + body + b" }")
    assert envelope.custom_id == b'"\\u0041"'
    assert envelope.body == body


def test_a_report_keeps_the_first_errors_and_counts_all() -> None:
    """The closing entry says how many were left out."""
    report = ErrorReport(max_errors=2)
    errors = [LineError(code="c", message="m", line=n) for n in range(5)]
    assert report.data() == []
    report.add(errors[:2])
    assert report.data() == errors[:2]
    report.add(errors[2:])
    assert report.data() == [*errors[:2], more_errors(3)]
    assert report.count == 5


def test_faults_of_the_whole_file_have_no_line() -> None:
    """An empty file and one with too many lines; where no limit on lines is set, any number will do."""
    limits = replace(KIMI, max_lines=5)
    found = {count: [(e.code, e.line) for e in whole_file_errors(count, limits)] for count in (0, 1, 5, 6)}
    assert found == {0: [("empty_file", None)], 1: [], 5: [], 6: [("too_many_tasks", None)]}
    assert list(whole_file_errors(1_000_000, KIMI)) == []


def test_a_report_reads_lines() -> None:
    """It keeps what is wrong with each, and nothing of the good ones."""
    report = ErrorReport(max_errors=10)
    report.read(read(line("a") + b"\nx\n" + line("a")), Checker(endpoint=CHAT, limits=KIMI, known_models=["m"]))
    assert [(error.code, error.line) for error in report.data()] == [
        ("invalid_json_line", 2),
        ("duplicate_custom_id", 3),
    ]
    report.add_unlisted(7)
    assert report.count == 9
    assert report.data()[-1].message.startswith("7 more errors")
