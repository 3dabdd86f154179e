"""What tests start with that run the product as processes."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acceptance.serving import Processes, processes_in

# Of Ray, which reads them when the first test file imports it. Nothing goes to its makers, no token is written to this
# user's home, and its nodes stay on 127.0.0.1, which they leave for the machine's own address where clusters of several
# machines are possible.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "ab" * 32,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Processes in sessions of their own, all of which end with the test."""
    with processes_in(tmp_path) as started:
        yield started


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Tell a figure, or a seed, to the one who reads the end of the run: it comes from another process perhaps."""
    return lambda text: record_property("told", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the tests have told."""
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "nodeid")]
    told = {
        report.nodeid: [text for name, text in report.user_properties if name == "told"]
        for report in reports
        if getattr(report, "user_properties", ())
    }
    if any(told.values()):
        terminalreporter.section("figures")
    for node, texts in told.items():
        for text in texts:
            terminalreporter.line(f"{node}: {text}")
