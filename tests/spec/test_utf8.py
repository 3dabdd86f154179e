"""Whether text is UTF-8, with the fast parser and without."""

import json
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchmill.spec.utf8 import Utf8

FAST = Utf8()


@given(st.binary() | st.text().map(lambda text: json.dumps(text, ensure_ascii=False).encode(errors="surrogatepass")))
@example(b'"' + b"\xe4\xb8\xad" * 100_000 + b'"')
@example(b'"' + b"\xe4\xb8\xad" * 100_000 + b'\xe4"')
@example(b'["\xe4\xb8\xad", 99999999999999999999999]')  # no number for the fast parser, and good JSON
def test_it_says_what_pythons_decoder_says(text: bytes) -> None:
    """For any bytes, long and short."""
    try:
        text.decode()
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            FAST.check(text)
    else:
        FAST.check(text)


def test_without_the_fast_parser_it_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no wheel for it, Python's decoder does."""
    monkeypatch.setitem(sys.modules, "simdjson", None)
    slow = Utf8()
    slow.check('"中"'.encode())
    with pytest.raises(UnicodeDecodeError):
        slow.check(b'"\xe4"')
