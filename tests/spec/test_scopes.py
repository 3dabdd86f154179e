"""Scopes."""

import pytest

from batchmill.spec.scopes import DEFAULT_SCOPES, Scope, read_scopes, scope_needed, write_scopes


@pytest.mark.parametrize(
    ("method", "scope"),
    [("GET", "read"), ("HEAD", "read"), ("POST", "write"), ("DELETE", "write"), ("PUT", "write"), ("get", "write")],
)
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches/x/cancel", "/v1/keysmith", "/", "", "/v2/keys"])
def test_a_method_needs_one_scope(method: str, scope: str, path: str) -> None:
    """What reads needs `read`; whatever else there is needs `write`."""
    assert scope_needed(method, path) == scope


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT"])
def test_some_paths_need_a_scope_of_their_own(method: str) -> None:
    """Keys, and all below them, are for admin keys; who asks, any key may ask."""
    for path in ("/v1/keys", "/v1/keys/", "/v1/keys/key_1/revoke"):
        assert scope_needed(method, path) is Scope.ADMIN
    assert scope_needed(method, "/v1/organisation") is None


def test_scopes_are_kept_as_words() -> None:
    """Written and read again they are the same, in one order; no word is no scope, and another word is a fault."""
    assert write_scopes(DEFAULT_SCOPES) == "read write"
    assert read_scopes(write_scopes(set(Scope))) == set(Scope)
    assert read_scopes("") == frozenset()
    with pytest.raises(ValueError, match="root"):
        read_scopes("read root")
