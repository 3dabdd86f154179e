"""Copies the lines of a batch's input that failed, byte for byte, in the order of the input."""

from collections.abc import Iterator
from typing import BinaryIO

from batchmill.blobs.blobs import Blobs, Written
from batchmill.ledger.segment import DamagedSegment
from batchmill.spec.family import Wanted
from batchmill.spec.lines import read_lines
from batchmill.spec.results import result_id

_LONGEST = 1 << 40  # bytes: it was checked when the batch was validated
_AT_ONCE = 1 << 20


def copy_failed(
    *, blobs: Blobs, batch_id: str, input_key: str, error_key: str, wanted: Wanted, key: str
) -> Written | None:
    """Write the input lines whose failed Results are wanted under a key, durably; None if there are none. It blocks.

    The error file is in the input's order, and a Result's id says of which line it is: both are read once, together.

    Raises:
        BlobMissing: the bytes of the input or of the error file are gone.
        DamagedSegment: the error file holds what is of no line of the input.
        OSError: there is no room.
    """
    with blobs.open(input_key) as source, blobs.open(error_key) as failed:
        lines = _failed_lines(source, batch_id, _ids(failed, wanted))
        first = next(lines, None)
        if first is None:
            return None
        writer = blobs.writer(key)
        try:
            waiting = bytearray(first)
            for line in lines:
                if len(waiting) >= _AT_ONCE:
                    writer.write(bytes(waiting))
                    waiting.clear()
                waiting += line
            writer.write(bytes(waiting))
            return writer.finish()
        finally:
            writer.discard()


def _ids(failed: BinaryIO, wanted: Wanted) -> Iterator[str]:
    while text := failed.readline():
        if wanted.takes(failed=True, text=text):
            yield text.split(b'"', 4)[3].decode()  # a line begins with its id, and may be nested too deep for a decoder


def _failed_lines(source: BinaryIO, batch_id: str, ids: Iterator[str]) -> Iterator[bytes]:
    wanted = next(ids, None)
    if wanted is None:
        return
    for raw in read_lines(source.readline, _LONGEST):
        if result_id(batch_id, raw.number) == wanted:
            yield raw.text + b"\n"
            wanted = next(ids, None)
            if wanted is None:
                return
    raise DamagedSegment(f"{batch_id}: its error file holds {wanted}, which is of no line of its input")
