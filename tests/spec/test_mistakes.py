import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.limits import KIMI
from batchmill.spec.lines import Checker, RawLine
from batchmill.spec.mistakes import likely_mistake

LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [{"role": "user", "content": "x"}]},
}
GOOD = json.dumps(LINE).encode()


def said(text: bytes) -> str:
    """Return what the report says of line 1."""
    checker = Checker(endpoint="/v1/chat/completions", limits=KIMI, known_models=None)
    [error] = checker.check(RawLine(1, 0, text, over=False))
    assert error.message.startswith("Line 1 ")  # type: ignore[union-attr]
    return str(error.message)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (gzip.compress(GOOD), "compressed"),
        (b"PK\x03\x04" + GOOD, "binary"),
        ("\u200b".encode() + GOOD, "invisible"),
        ("\u00a0".encode() + GOOD, "invisible"),
        (b"# my requests", "Comments"),
        (b"<!doctype html><html>", "HTML"),
        (b"{", "spread over several"),
        (b'  "custom_id": "a",', "spread over several"),
        (b"},", "spread over several"),
        (b"[" + GOOD + b",", "array"),
        (b"[" + GOOD + b"]", "array"),
        (str(LINE).encode(), "double quotes"),
        (b"{custom_id: 1}", "double quotes"),
        (GOOD + GOOD, "several objects"),
        (GOOD + b",", "comma"),
        (b"custom_id,prompt", "CSV"),
        (json.dumps(GOOD.decode()).encode(), "encoded twice"),
    ],
)
def test_a_common_mistake_is_named(text: bytes, told: str) -> None:
    """The report says what the line looks like and what to do, beside the rule that it breaks."""
    assert told in said(text)


@pytest.mark.parametrize("text", [b"nonsense", GOOD[:-1], b'{"a": nope}', b"7", b"null"])
def test_anything_else_gets_no_guess(text: bytes) -> None:
    """Where nothing is known the report only says what is so."""
    assert said(text).count(".") == 1


def test_the_place_is_named() -> None:
    """A line that is not valid JSON is told the byte, counted from 1, at which it stops being that."""
    assert said(b'{"a": nope}') == "Line 1 is not valid JSON (byte 8 of the line)."
    assert said(GOOD[:-1]) == "Line 1 is not valid JSON (it ends too early)."


@given(st.binary(max_size=300))
def test_any_bytes_may_be_guessed_at(text: bytes) -> None:
    """No line is too odd for a guess."""
    likely_mistake(text)
