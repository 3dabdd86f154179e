"""Crash points: what is acknowledged outlives a kill and a power cut at any moment, and nothing is ever half there.

Here runs what fits into a few minutes; `make faults-crashpoints` tries every point on both filesystems.
"""

from collections.abc import Callable

import pytest

from faults.sandbox import enter, need


@pytest.fixture
def attempt(capsys: pytest.CaptureFixture[str], tell: Callable[[str], None]) -> Callable[..., None]:
    """Try crash points with these options, and tell what was seen."""
    need(capsys, "ext4")

    def attempt(*options: object, code: int = 0) -> None:
        ended = enter("faults.crashpoints", *options)
        tell(ended.stdout.strip())
        assert ended.returncode == code, ended.stderr[-4000:]

    return attempt


@pytest.mark.timeout(600)
def test_the_power_may_be_cut_at_any_moment_of_an_upload_a_create_and_a_group_commit(
    attempt: Callable[..., None],
) -> None:
    """At each sync, rename, unlink and the like, and at every sixth write: no acknowledged fact is lost."""
    attempt("--mode", "power", "--operation", "upload", "create", "record", "--stride", 6)


@pytest.mark.timeout(600)
def test_a_kill_may_come_at_any_moment(attempt: Callable[..., None]) -> None:
    """At every call of each kind (every 24th write and open): an operation is there in full or not at all."""
    attempt("--mode", "kill", "--stride", 24)


@pytest.mark.timeout(600)
def test_a_failed_sync_is_not_retried(attempt: Callable[..., None]) -> None:
    """Each sync of an upload and of a group commit fails once: no answer but a fault, and the bytes are given up."""
    attempt("--mode", "eio", "--operation", "upload", "record")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("careless", "operation"),
    [
        ("no-file-fsync", "upload"),
        ("no-folder-fsync", "upload"),
        ("row-before-bytes", "upload"),
        ("synchronous-normal", "create"),
        ("answer-before-commit", "create"),
    ],
)
def test_the_power_cut_catches_what_is_written_carelessly(
    attempt: Callable[..., None], careless: str, operation: str
) -> None:
    """A process that skips one step of the write path loses what it has acknowledged, and is caught."""
    attempt("--mode", "power", "--operation", operation, "--careless", careless, "--first", code=1)
