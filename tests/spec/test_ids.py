"""Ids and keys."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.ids import is_id, is_key, key_digest, key_hint, mint_id, mint_key


def test_ids_sort_by_creation_and_never_repeat() -> None:
    """The time leads, and 128 random bits follow."""
    ids = [mint_id("batch", 1_790_000_000 + n / 1000) for n in range(5)]
    assert ids == sorted(ids)
    assert all(one.startswith("batch_") and len(one) == len("batch_") + 46 for one in ids)
    assert len({mint_id("file", 1.0) for _ in range(100)}) == 100


def test_a_key_is_known_by_its_shape() -> None:
    """A key that was cut short or mistyped is told without the Store."""
    key = mint_key()
    assert is_key(key)
    assert not is_key(key[:-1])
    assert not is_key(key[:-1] + ("0" if key[-1] != "0" else "1"))
    assert not is_key("sk-bm-")
    assert not is_key("x" + key[1:])


@given(st.text())
def test_no_text_is_taken_for_a_key(text: str) -> None:
    """Any other text is not one, and no fault."""
    assert not is_key(text)


def test_only_a_digest_of_a_key_is_kept() -> None:
    """The SHA-256 in hex."""
    assert key_digest("sk-bm-x") == hashlib.sha256(b"sk-bm-x").hexdigest()


def test_a_hint_gives_no_key_away() -> None:
    """Six characters of the secret are shown, so that people know their keys apart."""
    key = mint_key()
    assert key.startswith(f"sk-bm-{key_hint(key)}")
    assert len(key_hint(key)) == 6


def test_what_is_no_id_is_told_from_one() -> None:
    """Prefix, length and digits: a text that a user has put in an id's place is none."""
    made = mint_id("batch", 1.0)
    assert is_id(made, prefix="batch")
    for text in ("", "batch_", made[:-1], made + "0", made.upper(), made.replace("_", "-"), f"x{made}", f"{made}\n"):
        assert not is_id(text, prefix="batch"), text
    assert not is_id(made, prefix="file")
