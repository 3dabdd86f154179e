"""Finds lines of an input by their custom_ids: one pass, byte for byte."""

from collections.abc import Iterator

import msgspec

from batchmill.blobs.blobs import Blobs
from batchmill.spec.lines import read_lines
from batchmill.spec.rules import UNREADABLE

_LONGEST = 1 << 40  # bytes of a line; what was uploaded was bounded


class _Named(msgspec.Struct, gc=False):
    custom_id: str


_NAMED = msgspec.json.Decoder(_Named)


def find_requests(blobs: Blobs, key: str, ids: frozenset[str]) -> Iterator[bytes]:
    r"""Yield the first line of each of these custom_ids, each with a \n, in their order; nothing behind the last.

    A line that holds none of them as it would be written plainly, and no backslash either, is not decoded: only by
    those can a custom_id be written in another way.

    Raises:
        BlobMissing: the bytes are gone.
    """
    plain = [each.encode(errors="replace") for each in ids]
    left = set(ids)
    with blobs.open(key) as stream:
        for raw in read_lines(stream.readline, _LONGEST):
            if b"\\" not in raw.text and not any(each in raw.text for each in plain):
                continue
            try:
                found = _NAMED.decode(raw.text).custom_id
            except UNREADABLE:
                continue
            if found in left:
                left.remove(found)
                yield raw.text + b"\n"
                if not left:
                    return
