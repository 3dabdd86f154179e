"""What makes two calls the same: the digest of what they ask for (design, "Retries of our own clients")."""

import hashlib
from collections.abc import Mapping

import msgspec

from batchmill.spec import errors


def create_fingerprint(value: object) -> str:
    """Return the SHA-256, in hex, of a decoded JSON body, whatever the order of its members and its spacing.

    Raises:
        ApiError: it is nested more deeply than can be written again.
    """
    try:
        return _digest(value)
    except RecursionError as fault:
        raise errors.invalid_request("The request body is nested too deeply.") from fault


def inline_fingerprint(members: Mapping[str, object], *, sha256: str) -> str:
    """Return the same of an order that brings its requests: its other members, and the bytes that became its File."""
    return create_fingerprint({"order": members, "requests": sha256})


def upload_fingerprint(*, filename: str, purpose: str, expires_after: int | None, sha256: str) -> str:
    """Return the SHA-256, in hex, of what an upload brings; the boundary of its form changes with each try."""
    return _digest([filename, purpose, expires_after, sha256])


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()
