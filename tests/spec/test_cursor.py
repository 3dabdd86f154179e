"""Cursors: what a client gets is what comes back, and nothing else is taken for one."""

from base64 import urlsafe_b64encode

import pytest

from batchmill.spec.cursor import START, Cursor, Position, parse_cursor
from batchmill.spec.errors import ApiError

BATCH = "batch_" + "0" * 46


@pytest.mark.parametrize(
    "position", [START, Position(7, 3, 2, 5), Position(2**31 - 1, 1, 0, 0), Position(10**17, file="error")]
)
def test_a_cursor_comes_back_as_it_was(position: Position) -> None:
    """It is printable, and reads as the same place in the same batch."""
    cursor = Cursor(batch_id=BATCH, position=position)
    assert cursor.text().isascii()
    assert cursor.text().isprintable()
    assert parse_cursor(cursor.text()) == cursor


@pytest.mark.parametrize(
    "plain",
    [
        "",
        "x",
        f"{BATCH}.1.0.0.0",
        f"{BATCH}.-1.0.0.0.",
        f"{BATCH}.1.0.0.2.",
        f"{BATCH}.{2**31}.0.0.0.",
        f"{BATCH}.1.{2**31}.0.0.",
        f"{BATCH}.1.0.{2**31}.0.output",
        f"{BATCH}.1.0.0.0.input",
        "file_" + f"{BATCH}.1.0.0.0."[6:],
        "é",
        "x" * 300,
    ],
)
def test_anything_else_is_refused(plain: str) -> None:
    """So is what could only be forged: a place before its Segment, or a number beyond any column."""
    with pytest.raises(ApiError) as refused:
        parse_cursor(urlsafe_b64encode(plain.encode()).decode().rstrip("="))
    assert refused.value.param == "after"


@pytest.mark.parametrize("text", ["!", "a", "\xff", "_w"])
def test_what_is_no_base64_or_utf8_is_refused(text: str) -> None:
    """It is a 400, no fault."""
    with pytest.raises(ApiError):
        parse_cursor(text)
