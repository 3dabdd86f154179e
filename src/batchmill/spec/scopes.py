"""What a key may do: scopes, and the one that each method needs."""

from collections.abc import Collection
from enum import StrEnum


class Scope(StrEnum):
    """One thing a key is good for; none contains another."""

    READ = "read"  # GET and HEAD
    WRITE = "write"  # every other method
    ADMIN = "admin"  # nothing of the contract needs it


DEFAULT_SCOPES = frozenset({Scope.READ, Scope.WRITE})
_READING = frozenset({"GET", "HEAD"})


def scope_needed(method: str) -> Scope:
    """Return the scope that a call of this method needs."""
    return Scope.READ if method in _READING else Scope.WRITE


def write_scopes(scopes: Collection[Scope]) -> str:
    """Return the scopes as they are kept and shown: words with spaces between, always in one order."""
    return " ".join(scope for scope in Scope if scope in scopes)


def read_scopes(text: str) -> frozenset[Scope]:
    """Return the scopes that the text names; a word that is none raises ValueError."""
    return frozenset(Scope(word) for word in text.split())
