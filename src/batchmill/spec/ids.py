"""Ids and keys: how they are minted, and what of a key may be kept."""

import hashlib
import re
import secrets
import zlib

KEY_PREFIX = "sk-bm-"  # lets a scanner recognise a leaked key
_ID = re.compile(r"[a-z]+_[0-9a-f]{46}")


def mint_id(prefix: str, now: float) -> str:
    """Return a new id, `prefix_` and 46 hex digits, that sorts by creation.

    Microseconds of `now` (Unix seconds) lead, 128 random bits follow (contract, choice 7); lists page in this order.
    """
    return f"{prefix}_{int(now * 1e6):014x}{secrets.token_hex(16)}"


def is_id(text: str, *, prefix: str) -> bool:
    """Say whether the text has the shape of an id with this prefix: nothing else can be hidden in it."""
    return text.startswith(f"{prefix}_") and _ID.fullmatch(text) is not None


def mint_key() -> str:
    """Return a new API key: the prefix, 256 random bits and a checksum; shown once and never stored."""
    secret = secrets.token_hex(32)
    return f"{KEY_PREFIX}{secret}{_checksum(secret)}"


def is_key(text: str) -> bool:
    """Say whether the text has the shape and the checksum of a key, without a look at the Store."""
    secret = text[len(KEY_PREFIX) : -8]
    return text.startswith(KEY_PREFIX) and len(secret) == 64 and text[-8:] == _checksum(secret)  # noqa: PLR2004 - hex digits


def key_digest(key: str) -> str:
    """Return the SHA-256 of a key, in hex: the only form in which it is kept (invariant S3)."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_hint(key: str) -> str:
    """Return the first characters of a key's secret, which people know it by; 232 of its 256 bits stay secret."""
    return key.removeprefix(KEY_PREFIX)[:6]


def _checksum(secret: str) -> str:
    return f"{zlib.crc32(secret.encode()):08x}"
