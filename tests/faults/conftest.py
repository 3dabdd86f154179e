"""What the fault tests need of the machine."""

import pytest

from faults.chaos import not_permitted


@pytest.fixture
def namespaces(capsys: pytest.CaptureFixture[str]) -> None:
    """Skip where the machine gives no namespaces, and say so where it is seen."""
    reason = not_permitted()
    if reason is not None:
        with capsys.disabled():
            print(f"\nNOT RUN: {reason}")  # noqa: T201 - a skipped test must not look like a passed one
        pytest.skip(reason)
