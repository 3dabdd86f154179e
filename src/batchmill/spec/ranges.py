"""One range of bytes of a download, as RFC 9110 section 14 has it."""

import re

from batchmill.spec import errors

_ONE = re.compile(r"bytes=(?:([0-9]+)-([0-9]*)|-([0-9]+))", re.IGNORECASE)
_DIGITS = 20  # a number with more is beyond the end of every file


def parse_range(text: str, *, size: int) -> range | None:
    """Return the bytes that a `Range` header asks for, of `size`; None where the whole is the answer.

    Several ranges get the whole, so that a short request cannot ask for the same bytes a thousand times (reliability,
    A31); so does what is no range of bytes, as RFC 9110 allows.

    Raises:
        ApiError: 416, none of the bytes is there, or the end is before the start.
    """
    match = _ONE.fullmatch(text.strip())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        asked = range(max(0, size - _number(suffix)), size)
    else:
        asked = range(_number(first), min(size, _number(last) + 1) if last else size)
    if not asked:
        raise errors.range_not_satisfiable(size)
    return asked


def _number(digits: str) -> int:
    return int(digits.lstrip("0")[:_DIGITS] or "0")
