"""Which custom_ids were used before: remembered one by one, or found in two passes with eight bytes a line."""

from array import array
from collections import Counter
from collections.abc import Collection
from hashlib import blake2b
from typing import NamedTuple, Protocol

_DIGEST = 16  # bytes: 128 bits cannot be made to collide, and cost less than the ids themselves
_BUCKETS = 256
_MOST_WATCHED = 100_000  # repeated ids that are told apart: more than any report lists


class Ids(Protocol):
    """The custom_ids of the lines of a file so far."""

    def first(self, custom_id: str, number: int) -> int | None:
        """Return the line that used this custom_id before, or None; `number` is the line that uses it now."""


class EveryId:
    """Remembers every custom_id, at some hundred bytes each: for a reader who comes by once."""

    def __init__(self) -> None:
        self._used: dict[bytes, int] = {}

    def first(self, custom_id: str, number: int) -> int | None:
        """See `Ids`."""
        digest = blake2b(custom_id.encode(), digest_size=_DIGEST).digest()
        first = self._used.setdefault(digest, number)
        return None if first == number else first


class Hashes:
    """The first pass: keeps a hash of each, and says at the end which are suspect.

    The hash is Python's own, keyed anew in each process, so that nobody makes two collide; if two do by chance, the
    second pass finds nothing (measured: 11 bytes an id, dependencies, 2).
    """

    def __init__(self) -> None:
        self._buckets = [array("q") for _ in range(_BUCKETS)]

    def first(self, custom_id: str, number: int) -> int | None:  # noqa: ARG002 - as `Ids` has it
        """Return None: nobody knows yet."""
        value = hash(custom_id)
        self._buckets[value % _BUCKETS].append(value)
        return None

    def repeated(self) -> "Repeated":
        """Return the hashes that came more than once."""
        watched: set[int] = set()
        others = 0
        for bucket in self._buckets:
            repeats = len(bucket) - len(set(bucket))
            if repeats and len(watched) < _MOST_WATCHED:
                watched.update(value for value, times in Counter(bucket).items() if times > 1)
            else:
                others += repeats
        return Repeated(frozenset(watched), others)


class Repeated(NamedTuple):
    """What a first pass found: hashes to watch, and the number of repeated uses of all others where those are many."""

    watched: frozenset[int]
    others: int


class Watched:
    """The second pass: remembers the suspects alone."""

    def __init__(self, hashes: Collection[int]) -> None:
        self._hashes = hashes
        self._ids = EveryId()

    def first(self, custom_id: str, number: int) -> int | None:
        """See `Ids`."""
        return self._ids.first(custom_id, number) if hash(custom_id) in self._hashes else None
