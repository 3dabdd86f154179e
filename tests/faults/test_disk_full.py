"""A disk that fills up: nothing acknowledged is lost; batches pause, say why, and go on by themselves (R11)."""

import pytest

from faults.sandbox import enter, need

ROUNDS = 5


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_a_full_disk_pauses_and_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Filled while it uploads, validates, runs and finalizes, with bytes and with inodes, it goes on within 30 s."""
    need(capsys, "ext4")
    ended = enter("faults.disk_full", "--rounds", ROUNDS, "--seed", 1)
    with capsys.disabled():
        print("\n" + "\n".join(line for line in ended.stdout.splitlines() if line.startswith(("disk-full", "NOT RUN"))))  # noqa: T201 - the measure
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-8000:]
