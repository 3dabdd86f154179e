"""A seekable stream over bytes that are far away: read in growing pieces, the next on its way meanwhile."""

import io
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_FIRST = 256 << 10  # bytes of a piece; who reads on gets larger ones
_GROWTH = 4
_MOST = 4 << 20


class ReadAhead(io.RawIOBase):
    """Reads `size` bytes by `fetch` (offset, length), which returns just those bytes or raises.

    Two pieces are held at most.
    """

    def __init__(self, *, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._at = 0
        self._begin = 0
        self._piece = memoryview(b"")
        self._next: Future[bytes] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("no place before the first byte")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """See `io.RawIOBase`. Raises what `fetch` raises."""
        if self._at >= self._size:
            return 0
        if not self._begin <= self._at < self._begin + len(self._piece):
            self._turn()
        found = self._piece[self._at - self._begin :][: len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        """See `io.RawIOBase`."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = self._next = None
        self._piece = memoryview(b"")
        super().close()

    def _turn(self) -> None:
        """Take the next piece; one that is read on from is followed by another."""
        end = self._begin + len(self._piece)
        goes_on = end > 0 and self._at == end
        length = min(len(self._piece) * _GROWTH, _MOST) if goes_on else _FIRST
        waiting, self._next = self._next, None
        if goes_on and waiting is not None:
            data = waiting.result()
        else:
            data = self._fetch(self._at, min(length, self._size - self._at))
        self._begin, self._piece = self._at, memoryview(data)
        end = self._begin + len(data)
        if goes_on and end < self._size:
            self._thread = self._thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
            following = min(len(data) * _GROWTH, _MOST, self._size - end)
            self._next = self._thread.submit(self._fetch, end, following)
