"""The harness itself: a run finds each bug that is planted in it, and finds nothing where none is."""

from pathlib import Path

import pytest

from faults.__main__ import short_run
from faults.chaos import run_enclosed
from faults.planted import BUGS, is_found
from faults.remote import Remote

# What CI plants; `make faults` plants them all. One that only a stop can show, one of closing, one of sending.
CHOSEN = ("no_fence", "cancel_drops_open_lines", "outage_costs_attempts")
# On PostgreSQL and a bucket: commits in doubt, and two writers at a time.
CHOSEN_REMOTE = ("lost_commit_taken_for_failed", "counts_read_then_written")


pytestmark = pytest.mark.usefixtures("namespaces")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("planted", CHOSEN)
def test_a_planted_bug_is_found(planted: str, tmp_path: Path) -> None:
    """A short run with the bug in it breaks a promise, by name."""
    assert is_found(planted, run_enclosed(short_run(planted), tmp_path).violations)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("planted", CHOSEN_REMOTE)
def test_a_bug_that_only_a_server_of_many_writers_shows_is_found(planted: str, tmp_path: Path) -> None:
    """On PostgreSQL and a bucket, a bug that SQLite would hide breaks a promise, by name."""
    assert is_found(planted, run_enclosed(short_run(planted, Remote.name), tmp_path).violations)


@pytest.mark.timeout(300)
def test_nothing_is_found_where_nothing_is_planted(tmp_path: Path) -> None:
    """The same short run without a bug breaks none: no bug is found by accident."""
    verdict = run_enclosed(short_run(), tmp_path)
    assert verdict.violations == {}, verdict.examples


def test_enough_bugs_are_there_to_plant() -> None:
    """There are at least twelve bugs, each with a name of its own and a sentence that says what it is."""
    assert len({bug.__name__ for bug in BUGS}) == len(BUGS) >= 12
    assert all(bug.__doc__ for bug in BUGS)
