"""Scopes."""

import pytest

from batchmill.spec.scopes import DEFAULT_SCOPES, Scope, read_scopes, scope_needed, write_scopes


@pytest.mark.parametrize(
    ("method", "scope"),
    [("GET", "read"), ("HEAD", "read"), ("POST", "write"), ("DELETE", "write"), ("PUT", "write"), ("get", "write")],
)
def test_a_method_needs_one_scope(method: str, scope: str) -> None:
    """What reads needs `read`; whatever else there is needs `write`."""
    assert scope_needed(method) == scope


def test_scopes_are_kept_as_words() -> None:
    """Written and read again they are the same, in one order; no word is no scope, and another word is a fault."""
    assert write_scopes(DEFAULT_SCOPES) == "read write"
    assert read_scopes(write_scopes(set(Scope))) == set(Scope)
    assert read_scopes("") == frozenset()
    with pytest.raises(ValueError, match="root"):
        read_scopes("read root")
