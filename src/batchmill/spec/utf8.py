"""Whether text is UTF-8, by the fastest means at hand; msgspec skips over what it does not keep without a look."""

from collections.abc import Callable

_MOST = 256 << 10  # bytes; the parser keeps some fourteen times as much memory as the longest text that it has seen


class Utf8:
    """Checks texts that should be JSON, one after the other.

    Python's own decoder reads half a gigabyte a second and makes a string of it; simdjson reads ten times as much, and
    whatever it does not like is left to Python's decoder.
    """

    def __init__(self) -> None:
        self._parse = _fast_parser()

    def check(self, text: bytes) -> None:
        """Return if all is well.

        Raises:
            UnicodeDecodeError: It is not UTF-8.
        """
        if text.isascii():
            return
        if self._parse is not None and len(text) <= _MOST:
            try:
                self._parse(text)
            except (ValueError, RuntimeError):  # UTF-8, JSON or a number too large for it: it does not always say which
                pass
            else:
                return
        text.decode()


def _fast_parser() -> Callable[[bytes], object] | None:
    try:
        from simdjson import Parser  # noqa: PLC0415 - it may be missing
    except ImportError:  # no wheel for this Python or machine: slower, and otherwise the same
        return None
    return Parser().parse
