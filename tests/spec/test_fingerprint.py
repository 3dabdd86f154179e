"""What makes two calls the same."""

import pytest

from batchmill.spec.errors import ApiError
from batchmill.spec.fingerprint import create_fingerprint, upload_fingerprint

ORDER = {"input_file_id": "file_1", "metadata": {"a": "1", "b": "2"}, "more": [2**70, 1.5, None, True]}
UPLOAD = {"filename": "a.jsonl", "purpose": "batch", "expires_after": None, "sha256": "ab"}


def test_the_order_of_members_does_not_matter() -> None:
    """Members in another order, at any level, are the same order for a batch."""
    turned = {"more": ORDER["more"], "metadata": {"b": "2", "a": "1"}, "input_file_id": "file_1"}
    assert create_fingerprint(turned) == create_fingerprint(ORDER)
    assert len(create_fingerprint(ORDER)) == 64


@pytest.mark.parametrize(
    "other",
    [{"input_file_id": "file_2"}, {"metadata": None}, {"more": [None, True]}, {"endpoint": "/v1/chat/completions"}],
)
def test_another_value_is_another_order(other: dict[str, object]) -> None:
    """Any value counts, and so does a default that is spelt out."""
    assert create_fingerprint(ORDER | other) != create_fingerprint(ORDER)


def test_what_cannot_be_written_again_is_refused() -> None:
    """A body that is nested too deeply is the client's fault, not ours."""
    deep: object = None
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ApiError, match="deep"):
        create_fingerprint(deep)
    del deep


@pytest.mark.parametrize("other", [{"filename": "b.jsonl"}, {"purpose": "p"}, {"expires_after": 1}, {"sha256": "cd"}])
def test_an_upload_is_its_name_purpose_expiry_and_bytes(other: dict[str, object]) -> None:
    """The same four are the same upload, and each of them counts."""
    assert upload_fingerprint(**UPLOAD) == upload_fingerprint(**UPLOAD)  # type: ignore[arg-type]
    assert upload_fingerprint(**(UPLOAD | other)) != upload_fingerprint(**UPLOAD)  # type: ignore[arg-type]
