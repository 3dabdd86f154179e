"""What the fault tests need of the machine."""

import pytest

from faults.sandbox import need


@pytest.fixture
def namespaces(capsys: pytest.CaptureFixture[str]) -> None:
    """Skip where the machine gives no namespaces, and say so where it is seen."""
    need(capsys)
