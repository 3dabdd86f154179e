"""How many uploads, quotes and the like may run at a time: nobody takes all connections, memory and disk alone."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from batchmill.spec import errors

_RETRY_SECONDS = 5.0  # such a call takes a while


class Slots:
    """Slots for one kind of long call: `each` for one key, `most` for all together."""

    def __init__(self, *, each: int, most: int) -> None:
        self._each = each
        self._most = most
        self._taken: Counter[str] = Counter()

    @contextmanager
    def one(self, key: str) -> Iterator[None]:
        """Hold a slot for as long as the call lasts.

        Raises:
            ApiError: 429, there is none left (reliability A29).
        """
        if self._taken[key] >= self._each or self._taken.total() >= self._most:
            raise errors.rate_limited(_RETRY_SECONDS)
        self._taken[key] += 1
        try:
            yield
        finally:
            self._taken -= Counter([key])
