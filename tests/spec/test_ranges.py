"""The range of bytes that a download is asked for."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.errors import ApiError
from batchmill.spec.ranges import parse_range

_HUGE = "9" * 5_000  # int() itself gives up at 4,300 digits


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        *(("bytes=0-0", range(1)), ("bytes=2-4", range(2, 5)), ("bytes=9-", range(9, 10)), ("Bytes=0-", range(10))),
        *(("bytes=-1", range(9, 10)), ("bytes=-99", range(10)), (f"bytes=-{_HUGE}", range(10))),
        *((f"bytes=3-{_HUGE}", range(3, 10)), (f"bytes={'0' * 5_000}3-4", range(3, 5)), (" bytes=1-1 ", range(1, 2))),
    ],
)
def test_one_range_is_cut_to_what_is_there(text: str, asked: range) -> None:
    """Both ends are included, a suffix counts from the end, and beyond the end there is nothing."""
    assert parse_range(text, size=10) == asked


@pytest.mark.parametrize("text", ["bytes=5-2", "bytes=10-", "bytes=10-12", "bytes=-0", f"bytes={_HUGE}-"])
def test_a_range_without_a_byte_is_a_416_that_tells_the_size(text: str) -> None:
    """The answer names how long the file is."""
    with pytest.raises(ApiError) as caught:
        parse_range(text, size=10)
    assert (caught.value.status, caught.value.headers["Content-Range"]) == (416, "bytes */10")


@pytest.mark.parametrize(
    "text",
    [
        *("", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=+1-2", "bytes=1-2;", "items=0-1", "bytes=٢-٣"),
        *("bytes=0-0,2-2", "bytes=" + "0-," * 1_000, "bytes=0-0\n,", "0-1"),
    ],
)
def test_anything_else_gets_the_whole(text: str) -> None:
    """Several ranges, another unit and no range at all are passed over."""
    assert parse_range(text, size=10) is None


@given(st.binary(max_size=30), st.integers(0, 40), st.integers(0, 40))
def test_a_range_is_what_slicing_says(content: bytes, first: int, last: int) -> None:
    """`first-last` is the slice, `-last` the tail; 416 if and only if that is empty."""
    for text, expected in (
        (f"{first}-{last}", content[first : last + 1]),
        (f"-{last}", content[-last:] if last else b""),
    ):
        try:
            asked = parse_range(f"bytes={text}", size=len(content))
        except ApiError:
            assert expected == b""
        else:
            assert asked is not None
            assert content[asked.start : asked.stop] == expected != b""


@given(st.text("bytes=0123456789-, ", max_size=30), st.integers(0, 1 << 62))
def test_no_text_is_more_than_refused(text: str, size: int) -> None:
    """Any text is bytes of the file, the whole file, or a 416."""
    with suppress(ApiError):
        asked = parse_range(text, size=size)
        assert asked is None or 0 <= asked.start < asked.stop <= size
