"""What a key may do: scopes, and the one that each route needs."""

from collections.abc import Collection, Mapping
from enum import StrEnum
from types import MappingProxyType


class Scope(StrEnum):
    """One thing a key is good for; none contains another."""

    READ = "read"  # GET and HEAD
    WRITE = "write"  # every other method
    ADMIN = "admin"  # the organisation's keys; nothing of the contract needs it


DEFAULT_SCOPES = frozenset({Scope.READ, Scope.WRITE})
_READING = frozenset({"GET", "HEAD"})

# What is not judged by the method alone, by the first two parts of the path. Any live key may ask who it is.
_BY_PATH: Mapping[str, Scope | None] = MappingProxyType({"/v1/keys": Scope.ADMIN, "/v1/organisation": None})


def scope_needed(method: str, path: str) -> Scope | None:
    """Return the scope that a call needs; None where any key will do."""
    root = "/".join(path.split("/", 3)[:3])
    if root in _BY_PATH:
        return _BY_PATH[root]
    return Scope.READ if method in _READING else Scope.WRITE


def in_order(scopes: Collection[Scope]) -> list[Scope]:
    """Return the scopes as they are shown, always in one order."""
    return [scope for scope in Scope if scope in scopes]


def write_scopes(scopes: Collection[Scope]) -> str:
    """Return the scopes as they are kept: words with spaces between."""
    return " ".join(in_order(scopes))


def read_scopes(text: str) -> frozenset[Scope]:
    """Return the scopes that the text names; a word that is none raises ValueError."""
    return frozenset(Scope(word) for word in text.split())
