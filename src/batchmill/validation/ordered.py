"""The lines of an input once more, in the order of the Plan, where it is dear to read them from here and there."""

import mmap
import os
import shutil
from collections.abc import Iterator
from typing import BinaryIO

from batchmill.blobs.blobs import BlobMissing, Blobs, BlobWriter, Written
from batchmill.blobs.space import is_full
from batchmill.schedule.plan import line_spans

_BLOCK = 1 << 20  # bytes handed on at once, about


class OrderedCopy:
    """A copy of an input in which some pieces have another order of lines; it is begun with the first of these.

    It is as long as the input, and what is in no such piece stands where it stands there: a Plan may refer to the
    input until there is one, and to the copy from then on. The input is read once more, from one end to the other; a
    piece lies in scratch while its lines are picked.
    """

    def __init__(self, *, blobs: Blobs, input_key: str, key: str) -> None:
        self._blobs = blobs
        self._input_key = input_key
        self._key = key
        self._source: BinaryIO | None = None
        self._writer: BlobWriter | None = None

    def lay(self, plan: bytes) -> int | None:
        """Copy the lines of a piece in the order of its Plan; None if there is no room for scratch.

        Returns:
            The offset of the first of them in the copy; one line end stands between each two.
        """
        begin = min(offset for offset, _ in line_spans(plan))
        size = max(offset + length for offset, length in line_spans(plan)) - begin
        scratch = self._scratch(size)
        if scratch is None:
            return None
        with scratch:
            source, copy = self._begun()
            for data in _read(source, begin - source.tell()):
                copy.write(data)
            for data in _read(source, size):
                scratch.write(data)
            scratch.flush()
            with mmap.mmap(scratch.fileno(), size, access=mmap.ACCESS_READ) as lines:
                for block in _blocks(lines, plan, begin):
                    copy.write(block)
                    size -= len(block)
        while size:  # there were blank lines, or lines that end with two bytes
            blank = b"\n" * min(size, _BLOCK)
            copy.write(blank)
            size -= len(blank)
        return begin

    def finish(self) -> Written | None:
        """Copy what is left, and make the copy durable; None if none was begun."""
        if self._writer is None or self._source is None:
            return None
        shutil.copyfileobj(self._source, self._writer, _BLOCK)
        return self._writer.finish()

    def discard(self) -> None:
        """Let go of the input, and give up a copy that is not finished."""
        if self._source is not None:
            self._source.close()
        if self._writer is not None:
            self._writer.discard()

    def _begun(self) -> tuple[BinaryIO, BlobWriter]:
        if self._source is None:
            self._source = self._blobs.open(self._input_key)
        if self._writer is None:
            self._writer = self._blobs.writer(self._key)
        return self._source, self._writer

    def _scratch(self, size: int) -> BinaryIO | None:
        """Return scratch that has room for so many bytes: it is asked for before anything is copied."""
        try:
            scratch = self._blobs.scratch()
            try:
                os.posix_fallocate(scratch.fileno(), 0, size)
            except BaseException:
                scratch.close()
                raise
        except OSError as fault:
            if not is_full(fault):
                raise
            return None
        return scratch


def _read(source: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the next bytes, just so many."""
    while size:
        data = source.read(min(size, _BLOCK))
        if not data:
            raise BlobMissing(f"an input ends {size} bytes too early")
        yield data
        size -= len(data)


def _blocks(lines: mmap.mmap, plan: bytes, begin: int) -> Iterator[bytes]:
    """Yield the lines of a piece in the Plan's order, many at once, one line end between each two."""
    block: list[bytes] = []
    size = 0
    for offset, length in line_spans(plan):
        block.append(lines[offset - begin : offset - begin + length])
        size += length
        if size >= _BLOCK:
            yield b"\n".join(block)
            block, size = [b""], 0  # a line end before the next one
    yield b"\n".join(block)
